"""The engine inside this process: one thread, one request at a time, first come first served.

It needs no worker process, which suits the command line and tests; a server uses `engine.pool.Pool`.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

from engine.backends import Backend
from engine.bundle import Bundle
from engine.client import (
    Cancelled,
    DeadlineMissed,
    EngineStats,
    Event,
    NotReady,
    Overloaded,
    Picture,
    Preview,
    WorkerState,
    WorkerStats,
)
from engine.manifest import Manifest
from engine.pipeline import Pipeline
from engine.request import GenerateRequest, Job, validate


class LocalClient:
    """An `EngineClient` over one pipeline in a thread of its own."""

    def __init__(self, bundle: Bundle, backend: Callable[[], Backend], capacity: int = 32) -> None:
        self.manifest: Manifest = bundle.manifest
        self._bundle = bundle
        self._backend = backend
        self._capacity = capacity
        self._thread = ThreadPoolExecutor(1, "engine")
        self._pipeline: Pipeline | None = None
        self._precision = ""  # known when it has loaded
        self._seconds = 0.1  # of a typical request, learnt while running
        self._running: OrderedDict[str, _Flight] = OrderedDict()
        self._cancelled = 0
        self._refused = 0

    @property
    def ready(self) -> bool:
        """See `EngineClient.ready`."""
        return self._pipeline is not None

    async def start(self) -> None:
        """See `EngineClient.start`."""
        loop = asyncio.get_running_loop()
        self._pipeline = await loop.run_in_executor(self._thread, self._load)

    def _load(self) -> Pipeline:
        backend = self._backend()
        self._precision = backend.precision
        return Pipeline(self._bundle, backend)

    async def submit(self, request: GenerateRequest, request_id: str) -> AsyncGenerator[Event, None]:
        """See `EngineClient.submit`."""
        job = validate(request, self.manifest)
        if self._pipeline is None:
            raise NotReady
        if (refusal := self.turn_away()) is not None:
            raise refusal
        flight = _Flight(self._pipeline, job, asyncio.get_running_loop())
        self._running[request_id] = flight
        self._thread.submit(flight.run)
        try:
            while True:
                event = await flight.events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Picture):
                    self._seconds += 0.2 * (sum(event.timings.values()) - event.timings["queue"] - self._seconds)
                    return
        finally:
            flight.cancelled = True
            del self._running[request_id]

    def turn_away(self) -> Overloaded | None:
        """See `EngineClient.turn_away`."""
        if len(self._running) < self._capacity:
            return None
        self._refused += 1
        return Overloaded("queue_full", len(self._running) * self._seconds)

    def cancel(self, request_id: str) -> bool:
        """See `EngineClient.cancel`."""
        flight = self._running.get(request_id)
        if flight is None:
            return False
        self._cancelled += 1
        flight.cancelled = True
        return True

    def stats(self) -> EngineStats:
        """See `EngineClient.stats`."""
        running = min(1, len(self._running))
        state: WorkerState = "warm" if self.ready else "starting"
        return EngineStats(
            queued=len(self._running) - running,
            running=running,
            workers=(WorkerStats("local", state, running=running, precision=self._precision),),
            refusals={"queue_full": self._refused},
            cancelled=self._cancelled,
        )

    async def close(self, grace: float) -> None:
        """See `EngineClient.close`."""
        waiting = asyncio.to_thread(self._thread.shutdown, wait=True)
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(waiting)), grace)
        except TimeoutError:
            for flight in self._running.values():
                flight.cancelled = True


class _Flight:
    """One request on its way through the thread; `events` is read on the loop."""

    def __init__(self, pipeline: Pipeline, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self.cancelled = False
        self._pipeline = pipeline
        self._job = job
        self._loop = loop
        self._submitted = time.perf_counter()

    def run(self) -> None:
        """Make the picture; in the engine's thread."""
        try:
            self._run()
        except Exception as error:
            self._tell(error)

    def _tell(self, event: Event | BaseException) -> None:
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def _run(self) -> None:
        job, pipeline = self._job, self._pipeline
        clock = _Laps(self._submitted)
        clock.lap("queue")
        self._check()
        text = pipeline.encode_text(job.prompt)
        clock.lap("text")
        control = pipeline.encode_control(job)
        clock.lap("control")
        sample = pipeline.start(job, text, control)
        while not sample.finished:
            self._check()
            pipeline.denoise([sample])
            if sample.step in job.preview_steps:
                self._tell(Preview(sample.step, job.steps, pipeline.preview([sample])[0]))
        clock.lap("denoise")
        image = pipeline.decode([sample])[0]
        clock.lap("decode")
        self._tell(Picture(image, job.seed, job.steps, clock.laps, text.truncated, worker="local"))

    def _check(self) -> None:
        if self.cancelled:
            raise Cancelled
        if self._job.timeout is not None and time.perf_counter() - self._submitted > self._job.timeout:
            raise DeadlineMissed


class _Laps:
    """A stopwatch that names what it measured."""

    def __init__(self, start: float) -> None:
        self.laps: dict[str, float] = {}
        self._last = start

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
