"""Log lines that machines can read and clients cannot forge; trace context; spans in a collector."""

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server import logs, tracing
from server.logs import JsonFormatter, TextFormatter
from server.metrics import Routes
from server.tracing import Tracing, parse_traceparent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def logger() -> Iterator[Callable[[logging.Formatter], tuple[logging.Logger, io.StringIO]]]:
    """A logger of the test's own, and what it wrote."""
    log = logging.getLogger("tests.server.logs")
    log.propagate = False
    log.setLevel(logging.DEBUG)

    def build(formatter: logging.Formatter) -> tuple[logging.Logger, io.StringIO]:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        handler.addFilter(logs._add_context)
        log.handlers = [handler]
        return log, stream

    yield build
    log.handlers = []
    logs.context.set({})


def test_json_lines(logger: Any) -> None:
    log, stream = logger(JsonFormatter())
    logs.context.set({"request_id": "req_1"})
    log.info("line\nbreak %s", "é", extra={"status": 200, "stages": {"text": 0.5}})
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "tests.server.logs",
        "message": "line\nbreak é",
        "request_id": "req_1",
        "status": 200,
        "stages": {"text": 0.5},
    }
    assert second["level"] == "error" and "ValueError: broken" in second["exception"]


def test_lines_for_people(logger: Any) -> None:
    log, stream = logger(TextFormatter())
    logs.context.set({"request_id": "req_1"})
    facts = {"status": 200, "seconds": 0.12345678, "stages": {"text": 0.5}, "path": 'a b="c', "empty": ""}
    log.info("GET /x\nINFO forged: line\x1b[2J", extra=facts)
    assert stream.getvalue() == (
        "INFO tests.server.logs: GET /x\\nINFO forged: line\\x1b[2J request_id=req_1 status=200 seconds=0.123457 "
        'stages.text=0.5 path="a b=\\"c" empty=""\n'
    )


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-{PARENT}-01", (TRACE, PARENT)),
        (f"cc-{TRACE}-{PARENT}-01-more", (TRACE, PARENT)),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        (f"00-{TRACE}-{PARENT}-01\n", None),
        ("", None),
    ],
)
def test_trace_context_is_valid_or_ignored(header: str, expected: tuple[str, str] | None) -> None:
    assert parse_traceparent(header.encode()) == expected


class Collector(BaseHTTPRequestHandler):
    """Keeps what OTLP exporters send."""

    received: list[bytes]

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    handler = type("Handler", (Collector,), {"received": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield handler.received  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


async def route(request: Request) -> PlainTextResponse:
    logs.note(stages={"text": 0.25, "denoise": 0.5}, steps=4)
    return PlainTextResponse("made")


async def test_a_collector_receives_the_request_and_its_stages(
    collector: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    tracer = tracing.tracer("1.2.3")
    assert tracer is not None
    app = Starlette(routes=[Route("/v1/{thing}", route)])
    app.add_middleware(Tracing, routes=Routes(["/v1/{thing}"]), tracer=tracer)
    with caplog.at_level(logging.INFO, "server.access"):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert (await client.get("/v1/models?secret=1", headers=headers)).text == "made"
    tracer.close()
    (line,) = (record for record in caplog.records if record.name == "server.access")
    assert line.getMessage() == "GET /v1/models" and vars(line)["steps"] == 4
    sent = [each for message in collector for each in ExportTraceServiceRequest.FromString(message).resource_spans]
    names = {attribute.key: attribute.value.string_value for attribute in sent[0].resource.attributes}
    assert names["service.name"] == "pixart-delta-server" and names["service.version"] == "1.2.3"
    spans = {span.name: span for each in sent for scope in each.scope_spans for span in scope.spans}
    assert set(spans) == {"GET /v1/{thing}", "text", "denoise"}
    root = spans["GET /v1/{thing}"]
    assert root.trace_id.hex() == TRACE and root.parent_span_id.hex() == PARENT
    facts = {attribute.key: attribute.value for attribute in root.attributes}
    assert facts["http.response.status_code"].int_value == 200 and facts["pixart.steps"].int_value == 4
    for name, seconds in (("text", 0.25), ("denoise", 0.5)):
        assert spans[name].parent_span_id == root.span_id
        assert spans[name].end_time_unix_nano - spans[name].start_time_unix_nano == int(1e9 * seconds)
    assert spans["denoise"].start_time_unix_nano == spans["text"].end_time_unix_nano


def test_without_a_collector_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setitem(sys.modules, "server.telemetry", None)  # importing it would fail
    assert tracing.tracer("1") is None


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "server.telemetry", None)
    assert tracing.tracer("1") is None
    assert "the extra otel is not installed" in caplog.text
