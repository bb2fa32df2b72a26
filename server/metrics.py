"""What an operator watches, in Prometheus' text format."""

import re
import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.client import EngineClient, RefusalReason, WorkerState
from server import logs

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
STEP_SECONDS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STEP_BUCKETS = (1, 2, 3, 4, 5, 6, 7, 8)


class Metrics:
    """The instruments of one server, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when a counter began says little, and takes a series of its own
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
            "Time that one request spent in one stage; queue is its wait.",
            ("stage",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.step_seconds = Histogram(
            "pixart_denoise_step_seconds",
            "Time from one step of a picture to the next, the mean of its steps.",
            buckets=STEP_SECONDS,
            registry=self.registry,
        )
        self.steps = Histogram(
            "pixart_picture_steps",
            "Steps that pictures took.",
            buckets=STEP_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "pixart_requests_in_flight", "Requests that wait or run.", ("route",), registry=self.registry
        )
        self.images = Counter("pixart_images", "Pictures made.", registry=self.registry)
        self.realtime_sessions = Gauge("pixart_realtime_sessions", "Open real-time sessions.", registry=self.registry)
        self.realtime_frames = Counter(
            "pixart_realtime_frames",
            "Messages of real-time sessions, received (in) and sent (out).",
            ("direction",),
            registry=self.registry,
        )
        self.realtime_dropped = Counter(
            "pixart_realtime_dropped",
            "Inputs of real-time sessions that got no picture, and previews that were not sent.",
            ("reason",),
            registry=self.registry,
        )
        self.ready = Gauge("pixart_ready", "1 once pictures can be made.", registry=self.registry)
        self.build = Gauge(
            "pixart_build_info",
            "Always 1; the labels say what is running.",
            ("version", "bundle", "backend", "precision"),
            registry=self.registry,
        )
        self._refusals: Tally[str] = Tally()

    def stages(self, timings: Mapping[str, float]) -> None:
        """Record the seconds per stage of one generation, here and for its request's line in the log."""
        logs.note(stages={stage: round(seconds, 6) for stage, seconds in timings.items()})
        for stage, seconds in timings.items():
            self.stage_seconds.labels(stage).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a request that the edge turned away; `reason` is one of few."""
        self._refusals[reason] += 1

    def watch(self, client: EngineClient) -> None:
        """Read the engine's own figures at every scrape."""
        self.ready.set_function(lambda: float(client.ready))
        self.registry.register(EngineCollector(client, self._refusals))


class EngineCollector(Collector):
    """The engine's statistics as metrics. Both the edge and the engine refuse, so those are added up here."""

    def __init__(self, client: EngineClient, refusals: Mapping[str, int]) -> None:
        self._client = client
        self._refusals = refusals

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry must not ask an engine that has not started yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One moment of the engine."""
        stats = self._client.stats()
        yield GaugeMetricFamily("pixart_queue_depth", "Requests that wait for a worker.", stats.queued)
        yield GaugeMetricFamily("pixart_engine_running", "Requests that workers are at.", stats.running)
        engine = {reason: stats.refusals.get(reason, 0) for reason in get_args(RefusalReason)}
        refusals = CounterMetricFamily("pixart_refusals", "Requests turned away.", labels=("reason",))
        for reason, count in {**engine, **self._refusals}.items():
            refusals.add_metric((reason,), count)
        yield refusals
        yield CounterMetricFamily("pixart_cancellations", "Requests cancelled before their picture.", stats.cancelled)
        yield CounterMetricFamily("pixart_replays", "Requests run again after a worker's death.", stats.replays)
        yield CounterMetricFamily("pixart_prompt_cache_hits", "Prompts found encoded.", stats.prompt_hits)
        yield CounterMetricFamily("pixart_prompt_cache_misses", "Prompts that were encoded.", stats.prompt_misses)
        yield _batch_sizes(stats.batch_sizes)
        states = GaugeMetricFamily("pixart_worker_state", "1 for a worker's state.", labels=("worker", "state"))
        restarts = CounterMetricFamily("pixart_worker_restarts", "Restarts of a worker.", labels=("worker",))
        running = GaugeMetricFamily("pixart_worker_running", "Requests a worker is at.", labels=("worker",))
        memory = GaugeMetricFamily(
            "pixart_worker_resident_memory_bytes", "Resident memory of a worker.", labels=("worker",)
        )
        for worker in stats.workers:
            for state in get_args(WorkerState):
                states.add_metric((worker.name, state), float(worker.state == state))
            restarts.add_metric((worker.name,), worker.restarts)
            running.add_metric((worker.name,), worker.running)
            memory.add_metric((worker.name,), worker.memory_bytes)
        yield from (states, restarts, running, memory)


def _batch_sizes(counts: Mapping[int, int]) -> Metric:
    """Denoiser calls by number of samples, as a histogram whose buckets are the powers of two that are needed."""
    family = HistogramMetricFamily("pixart_batch_size", "Samples in one call of the denoiser.")
    bounds = [1, 2, 4, 8, 16, 32, 64]
    buckets = [(f"{bound}.0", float(sum(n for size, n in counts.items() if size <= bound))) for bound in bounds]
    buckets.append(("+Inf", float(sum(counts.values()))))
    family.add_metric((), buckets, float(sum(size * n for size, n in counts.items())))
    return family


def outcome(status: int) -> str:
    """Status codes grouped by who has to act; a label with few values."""
    if status < 400:
        return "ok"
    if status in (429, 503):
        return "refused"
    if status == 504:
        return "deadline_missed"
    return "client_error" if status < 500 else "server_error"


class Routes:
    """The path templates that the application knows; everything else is "other", so that nobody can invent values."""

    def __init__(self, templates: Iterable[str]) -> None:
        known = list(templates)
        self._exact = frozenset(template for template in known if "{" not in template)
        self._patterns: list[tuple[re.Pattern[str], str]] = [
            (compile_path(template)[0], re.sub(r":\w+}", "}", template)) for template in known if "{" in template
        ]

    def name(self, path: str) -> str:
        """The route's template, such as `/v1/models/{name}`."""
        if path in self._exact:
            return path
        return next((template for pattern, template in self._patterns if pattern.fullmatch(path)), "other")


class MeasuredApp:
    """ASGI middleware: latency by route and outcome, and the number in flight."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Routes) -> None:
        self.app = app
        self.metrics = metrics
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = self.routes.name(scope["path"])
        in_flight = self.metrics.in_flight.labels(route)
        start = time.perf_counter()
        status = 500
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                in_flight.dec()
                seconds = time.perf_counter() - start
                self.metrics.request_seconds.labels(route, outcome(status)).observe(seconds)

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            # Now, not when the application returns: it may still have to close a file, and the client goes on.
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                end()

        in_flight.inc()
        try:
            await self.app(scope, receive, watch)
        finally:
            end()
