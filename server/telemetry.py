"""OpenTelemetry: spans of requests and of their stages, sent over OTLP. Imported only if a collector is named."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.spans import Span


class OtlpTracer:
    """Sends spans in the background; endpoint, headers and sampling come from OpenTelemetry's own variables."""

    def __init__(self, version: str) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME", "pixart-delta-server")
        resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: version})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("pixart-delta-server", version)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def start(self, name: str, route: str, method: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """See `server.spans.Tracer`."""
        context = self._propagator.extract(headers)
        attributes = {"http.request.method": method, "http.route": route}
        with self._tracer.start_as_current_span(
            name, context, kind=trace.SpanKind.SERVER, attributes=attributes
        ) as span:
            yield _OtlpSpan(self._tracer, span)

    def close(self) -> None:
        """See `server.spans.Tracer`."""
        self._provider.shutdown()


class _OtlpSpan:
    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    def ids(self) -> dict[str, str]:
        context = self._span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def end(self, status: int, facts: Mapping[str, Any]) -> None:
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(trace.StatusCode.ERROR)
        stages: Mapping[str, float] = facts.get("stages", {})
        for name, value in facts.items():
            if isinstance(value, str | bool | int | float):
                self._span.set_attribute(f"pixart.{name}", value)
        # The stages follow each other, and the last one has just ended.
        moment = time.time_ns() - int(1e9 * sum(stages.values()))
        for stage, seconds in stages.items():
            child = self._tracer.start_span(stage, start_time=moment)
            moment += int(1e9 * seconds)
            child.end(moment)
