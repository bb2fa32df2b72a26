"""What happened to each request, for the log and, if it is wanted, for an OpenTelemetry collector.

Trace context follows W3C's recommendation: a valid `traceparent` puts the request into the caller's trace.
"""

import logging
import os
import re
import time
from contextlib import nullcontext
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs
from server.metrics import Routes
from server.spans import Tracer

log = logging.getLogger(__name__)
access = logging.getLogger("server.access")

# Probes and scrapes come every few seconds; their lines are of interest to nobody, usually.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_LONGEST_PATH = 200
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


def parse_traceparent(header: bytes) -> tuple[str, str] | None:
    """Trace id and parent span id of a header; None: there is no such context, or it is malformed."""
    match = _TRACEPARENT.fullmatch(header)
    if match is None or (header[:2] == b"00" and len(header) != 55):
        return None
    return match[1].decode(), match[2].decode()


def tracer(version: str) -> Tracer | None:
    """The tracer that OpenTelemetry's own variables ask for. None, and no import, if they name no collector."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(os.environ.get(name) for name in names) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from server.telemetry import OtlpTracer
    except ImportError as error:
        log.warning("a collector of traces is named, but the extra otel is not installed (%s); no traces", error)
        return None
    return OtlpTracer(version)


class Tracing:
    """ASGI middleware: gives log lines the ids of their request, and writes one line for each request that ended.

    The line has method, path, status, seconds, the client's address, the key's holder, and what `note` was told; never
    a query string, a header or a body.
    """

    def __init__(self, app: ASGIApp, routes: Routes, tracer: Tracer | None = None) -> None:
        self._app = app
        self._routes = routes
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        method = scope.get("method", "WEBSOCKET")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        about = {"request_id": state["request_id"]} if "request_id" in state else {}
        facts: dict[str, Any] = {}
        logs.facts.set(facts)
        status = 0
        start = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.close":
                status = status or 403  # what the server makes of it before a session is open
            await send(message)

        route = self._routes.name(scope["path"])
        tracing = (
            nullcontext() if self._tracer is None else self._tracer.start(f"{method} {route}", route, method, headers)
        )
        with tracing as span:
            if span is not None:
                about |= span.ids()
            elif context := parse_traceparent(headers.get("traceparent", "").encode("latin-1")):
                about["trace_id"], about["parent_id"] = context
            logs.context.set(about)
            try:
                await self._app(scope, receive, watch)
            except Exception:
                status = status or 500
                raise
            finally:
                if holder := state.get("holder"):
                    facts["key"] = holder.key.name
                seconds = time.perf_counter() - start
                if span is not None:
                    span.end(status, facts)
                _write(scope, method, status, seconds, facts)


def _write(scope: Scope, method: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
    level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
    client = scope.get("client")
    facts = {"status": status, "seconds": round(seconds, 6), "client": client[0] if client else "", **facts}
    access.log(level, "%s %s", method, scope["path"][:_LONGEST_PATH], extra=facts)
