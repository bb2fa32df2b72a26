"""The engine as the server sees it: worker processes, who does what, and nothing lost when one of them dies."""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from contextlib import suppress

from engine.backends import Backend
from engine.blame import Blame
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
    RefusalReason,
    WorkerFailed,
)
from engine.delivery import Delivery
from engine.dispatch import Dispatcher
from engine.manifest import Manifest
from engine.messages import Done, Ended, FromWorker, Refused, Unfinished
from engine.options import PoolOptions
from engine.request import GenerateRequest, validate
from engine.supervisor import Supervisor

log = logging.getLogger(__name__)

LEAST_RETRY = 0.1  # seconds; a client that comes back sooner would only be refused again
DRAINING_RETRY = 1.0  # seconds; by then another server should have taken over
LATE = 0.25  # seconds that a worker is given to say itself that a request missed its deadline


class Pool:
    """An `EngineClient` over one worker process for each of `backends` (see `engine.options.backends`)."""

    def __init__(
        self,
        bundle: Bundle,
        backends: Sequence[Callable[[], Backend]],
        options: PoolOptions | None = None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._manifest = bundle.manifest
        self._options = options = options or PoolOptions()
        self._workers = [
            Supervisor(f"worker-{index}", bundle, backend, options, self, progress)
            for index, backend in enumerate(backends)
        ]
        self._dispatcher = Dispatcher(self._workers, self._cannot_be_kept)
        self._deliveries: dict[str, Delivery] = {}
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._started: asyncio.Future[None] | None = None
        self._failures: list[Exception] = []
        self._blame = Blame(options.replays, options.quarantine)
        self._was_ready = False
        self._closing = False
        self._idle = asyncio.Event()
        self._refusals: Counter[RefusalReason] = Counter()
        self._cancelled = 0
        self._replays = 0

    @property
    def manifest(self) -> Manifest:
        """See `EngineClient.manifest`."""
        return self._manifest

    @property
    def ready(self) -> bool:
        """See `EngineClient.ready`."""
        return any(worker.state == "warm" for worker in self._workers)

    async def start(self) -> None:
        """See `EngineClient.start`.

        Raises:
            BundleError, CompileError, ImportError, ValueError, WorkerFailed: it never will be.
        """
        self._started = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(worker.run(), name=worker.name) for worker in self._workers]
        await asyncio.shield(self._started)

    async def submit(self, request: GenerateRequest, request_id: str) -> AsyncGenerator[Event, None]:
        """See `EngineClient.submit`. Between a worker's death and its restart requests wait; they are not refused."""
        delivery = self._admit(request, request_id)
        try:
            self._dispatcher.dispatch(delivery)
            while True:
                event = await self._next(delivery)
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Picture):
                    return
        finally:
            self._leave(delivery)

    def turn_away(self) -> Overloaded | None:
        """See `EngineClient.turn_away`."""
        if self._closing:
            return self._refuse("draining", DRAINING_RETRY)
        if len(self._deliveries) >= self._options.capacity:
            soonest = min((place.seconds for place in self._dispatcher.places()), default=1.0)
            return self._refuse("queue_full", soonest)
        return None

    def cancel(self, request_id: str) -> bool:
        """See `EngineClient.cancel`."""
        delivery = self._deliveries.get(request_id)
        if delivery is None or delivery.over:
            return False
        self._cancelled += 1
        self._dispatcher.recall(delivery)
        delivery.tell(Cancelled(request_id))
        return True

    def stats(self) -> EngineStats:
        """See `EngineClient.stats`."""
        workers = tuple(worker.stats for worker in self._workers)
        running = min(len(self._deliveries), sum(worker.running for worker in workers))
        prompts = [worker.prompts for worker in self._workers]
        return EngineStats(
            queued=len(self._deliveries) - running,
            running=running,
            workers=workers,
            refusals=dict(self._refusals),
            cancelled=self._cancelled,
            replays=self._replays,
            prompt_hits=sum(hits for hits, _ in prompts),
            prompt_misses=sum(misses for _, misses in prompts),
            batch_sizes=dict(sum((worker.batch_sizes for worker in self._workers), Counter())),
        )

    async def close(self, grace: float) -> None:
        """See `EngineClient.close`. What does not get ready in time ends with Overloaded: it may be tried elsewhere."""
        self._closing = True
        if self._deliveries:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace)
        if self._deliveries:
            log.warning("%d requests are given up", len(self._deliveries))
        for delivery in list(self._deliveries.values()):
            self._dispatcher.recall(delivery)
            delivery.tell(self._refuse("draining", DRAINING_RETRY))
        for worker in self._workers:
            worker.close()
        await asyncio.gather(*self._tasks)

    def on_ready(self, worker: Supervisor) -> None:
        """See `engine.supervisor.Owner`."""
        if self._started is not None and not self._started.done():
            self._started.set_result(None)
        self._was_ready = True
        self._dispatcher.pump()

    def on_failure(self, worker: Supervisor, error: Exception) -> None:
        """See `engine.supervisor.Owner`."""
        log.error("%s will not get ready: %s", worker.name, error)
        self._failures.append(error)
        if len(self._failures) == len(self._workers) and self._started is not None and not self._started.done():
            self._started.set_exception(self._failures[0])

    def on_message(self, worker: Supervisor, message: FromWorker) -> None:
        """See `engine.supervisor.Owner`."""
        assert isinstance(message, Unfinished | Done | Refused | Ended)
        place = self._dispatcher.place(worker, message.number)
        delivery, size = place.delivery, place.delivery.job.size
        if isinstance(message, Unfinished):
            if message.step not in delivery.shown and not delivery.over:
                delivery.shown.add(message.step)
                image = worker.shared.picture(place.slot, size, message.step).copy()
                delivery.tell(Preview(message.step, delivery.job.steps, image))
            return
        if isinstance(message, Done) and delivery.suspect:
            self._blame.clear(delivery.fingerprint)
        if isinstance(message, Done) and not delivery.over:
            picture = Picture(
                worker.shared.picture(place.slot, size).copy(),
                delivery.job.seed,
                message.steps,
                message.timings,
                message.truncated,
                message.cached,
                delivery.replays,
                worker.name,
            )
            delivery.tell(picture)
        elif isinstance(message, Refused):
            # A replay was begun, so it cannot be said that nothing was done.
            late = message.reason == "deadline" and delivery.replays > 0
            if message.reason == "deadline":
                worker.booked.note(delivery.job, delivery.submitted, message.late)
            delivery.tell(DeadlineMissed() if late else self._refuse(message.reason, message.retry_after))
        elif isinstance(message, Ended):
            errors = {"cancelled": Cancelled(), "deadline": DeadlineMissed(), "failed": WorkerFailed(message.message)}
            delivery.tell(errors[message.ending])
            worker.booked.clear()
        self._dispatcher.release(worker, message.number)

    def on_death(self, worker: Supervisor, suspects: Sequence[int]) -> None:
        """See `engine.supervisor.Owner`. Requests that only waited in the worker are not to blame for its death."""
        lost = self._dispatcher.lose(worker)
        for key in {place.delivery.fingerprint for place in lost if place.slot in suspects}:
            self._blame.add(key)
            if self._blame.refuses(key):
                self._give_up(key)
        again = [place.delivery for place in lost if not place.delivery.over]
        for delivery in again:
            delivery.replays += 1
            delivery.suspect = self._is_suspect(delivery)
            self._replays += 1
        # Suspects last: for one of them a worker would turn the others away.
        for delivery in sorted(again, key=lambda delivery: (delivery.suspect, delivery.submitted)):
            log.warning("run again, replay %d", delivery.replays, extra={"request_id": delivery.request_id})
            self._dispatcher.dispatch(delivery)
        self._dispatcher.pump()

    def _give_up(self, key: Hashable) -> None:
        """End all requests of this fingerprint."""
        deaths = self._blame.deaths(key)
        for delivery in list(self._deliveries.values()):
            if not delivery.over and delivery.fingerprint == key:
                log.error("given up: %d workers died on it", deaths, extra={"request_id": delivery.request_id})
                self._dispatcher.recall(delivery)
                delivery.tell(WorkerFailed(f"{deaths} workers died while working on this request"))

    def _is_suspect(self, delivery: Delivery) -> bool:
        return bool(self._blame) and self._blame.deaths(delivery.fingerprint) > 0

    def _admit(self, request: GenerateRequest, request_id: str) -> Delivery:
        job = validate(request, self._manifest)
        if not self._was_ready:
            raise NotReady
        if request_id in self._deliveries:
            raise ValueError(f"request id {request_id!r} is in use")
        delivery = Delivery(next(self._numbers), request_id, job, time.monotonic())
        delivery.suspect = self._is_suspect(delivery)
        if delivery.suspect and self._blame.refuses(delivery.fingerprint):
            raise WorkerFailed("workers died on such a request; it is refused for a while")
        if (refusal := self.turn_away()) is not None:
            raise refusal
        self._deliveries[request_id] = delivery
        return delivery

    def _refuse(self, reason: RefusalReason, retry_after: float) -> Overloaded:
        self._refusals[reason] += 1
        return Overloaded(reason, max(LEAST_RETRY, retry_after))

    def _cannot_be_kept(self, delivery: Delivery, late: float) -> None:
        delivery.tell(self._refuse("deadline", late))

    async def _next(self, delivery: Delivery) -> Event | Exception:
        """The next event. A deadline passes even when no worker is there to say so."""
        if delivery.job.timeout is None:
            return await delivery.events.get()
        left = delivery.submitted + delivery.job.timeout + LATE - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await delivery.events.get()
        except TimeoutError:
            self._dispatcher.recall(delivery)
            delivery.over = True
            return DeadlineMissed()

    def _leave(self, delivery: Delivery) -> None:
        """Its generator is finished, or closed early."""
        if not delivery.over:
            self._cancelled += 1
            self._dispatcher.recall(delivery)
            delivery.over = True
        del self._deliveries[delivery.request_id]
        if not self._deliveries:
            self._idle.set()
