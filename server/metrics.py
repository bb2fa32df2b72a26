"""What an operator watches, in Prometheus' text format."""

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The instruments of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.request_seconds = Histogram(
            "pixart_request_seconds",
            "Time from a request's arrival to the last byte of its answer.",
            ("route", "outcome"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "pixart_stage_seconds",
            "Time that one generation spent in one stage.",
            ("stage",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "pixart_requests_in_flight", "Requests that wait or run.", ("route",), registry=self.registry
        )
        self.images = Counter("pixart_images", "Pictures made.", registry=self.registry)
        self.ready = Gauge("pixart_ready", "1 once pictures can be made.", registry=self.registry)
        self.build = Gauge(
            "pixart_build_info",
            "Always 1; the labels say what is running.",
            ("version", "bundle", "backend", "precision"),
            registry=self.registry,
        )

    def stages(self, timings: Mapping[str, float]) -> None:
        """Record the seconds per stage of one generation."""
        for stage, seconds in timings.items():
            self.stage_seconds.labels(stage).observe(seconds)


def outcome(status: int) -> str:
    """Status codes grouped by who has to act; a label with few values."""
    if status < 400:
        return "ok"
    if status in (429, 503):
        return "refused"
    return "client_error" if status < 500 else "server_error"


class MeasuredApp:
    """ASGI middleware: latency by route and outcome, and the number in flight.

    Routes are the templates that the application knows; everything else counts as "other", so that a scanner cannot
    create label values.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self.routes else "other"
        status = 500
        start = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self.metrics.in_flight.labels(route).track_inprogress():
            try:
                await self.app(scope, receive, watch)
            finally:
                seconds = time.perf_counter() - start
                self.metrics.request_seconds.labels(route, outcome(status)).observe(seconds)
