"""What others do, with the same interface as our scheduler: three ways to decide without looking at costs."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from engine.costs import CostModel
from engine.scheduler import Scheduler
from engine.ticket import Finished, Refused, Shape, Stage, Ticket, Work


class Ours(Scheduler):
    """The server's scheduler; it never waits while there is work."""

    def wake(self, now: float) -> float:
        return inf


@dataclass(eq=False)
class _Request:
    ticket: Ticket
    todo: list[Stage]
    step: int = 0

    @property
    def stage(self) -> Stage:
        if self.todo:
            return self.todo[0]
        return "denoise" if self.step < self.ticket.steps else "decode"

    @property
    def begun(self) -> bool:
        return not self.todo or self.step > 0


class _Baseline(ABC):
    """What baselines share: a queue of at most `capacity`, from which requests vanish that expire before they begin.

    Clients that gave up are dropped from the queue, as HTTP servers do when a connection closes; nothing is predicted.
    """

    def __init__(self, costs: CostModel, capacity: int) -> None:
        self._costs = costs
        self._capacity = capacity
        self._queue: list[_Request] = []  # by arrival
        self._group: list[_Request] = []  # begun

    def admit(self, ticket: Ticket, now: float) -> None:
        if len(self._queue) + len(self._group) >= self._capacity:
            raise Refused("queue_full", 0.0)
        todo: list[Stage] = [stage for stage in ("text", "control") if getattr(ticket.encode, stage)]
        self._queue.append(_Request(ticket, todo))

    def predicted_completion(self, ticket: Ticket, now: float) -> float:
        return now + sum(self._seconds(request) for request in (*self._queue, *self._group))

    def _seconds(self, request: _Request) -> float:
        shape = request.ticket.shape
        seconds = sum(self._costs.seconds(stage, shape) for stage in (*request.todo, "decode"))
        return seconds + (request.ticket.steps - request.step) * self._costs.seconds("denoise", shape)

    def drop_hopeless(self, now: float) -> tuple[str, ...]:
        gone = [
            request for request in self._queue if request.ticket.deadline is not None and request.ticket.deadline < now
        ]
        self._queue = [request for request in self._queue if request not in gone]
        return tuple(request.ticket.id for request in gone)

    @abstractmethod
    def next(self, now: float) -> Work | None: ...

    def wake(self, now: float) -> float:
        return inf

    def finish(self, work: Work, seconds: float | None, now: float) -> tuple[Finished, ...]:
        done = []
        for request in list(self._group):
            if request.ticket.id not in work.ids:
                continue
            if work.stage == "decode":
                self._group.remove(request)
                done.append(Finished(request.ticket.id, (request.ticket.id,), request.step))
            elif work.stage == "denoise":
                request.step += 1
            else:
                request.todo.remove(work.stage)
        return tuple(done)


class Batching(_Baseline):
    """Request-level dynamic batching: requests of equal shape and steps run together from start to end.

    A batch starts when it has `max_batch` members, or `window` seconds after the arrival of its first. With
    `max_batch` 1 this is first in, first out.
    """

    def __init__(self, costs: CostModel, capacity: int, max_batch: int, window: float) -> None:
        super().__init__(costs, capacity)
        self._max_batch = max_batch
        self._window = window

    def next(self, now: float) -> Work | None:
        if not self._group:
            self._group = self._form(now)
            self._queue = [request for request in self._queue if request not in self._group]
        return _call(self._group)

    def wake(self, now: float) -> float:
        return self._queue[0].ticket.arrived + self._window if self._queue and not self._group else inf

    def _form(self, now: float) -> list[_Request]:
        if not self._queue:
            return []
        first = self._queue[0].ticket
        batch = [r for r in self._queue if (r.ticket.shape, r.ticket.steps) == (first.shape, first.steps)]
        batch = batch[: self._max_batch]
        return batch if len(batch) == self._max_batch or now >= first.arrived + self._window else []


class StepLevel(_Baseline):
    """Continuous batching without deadlines or costs: all requests of a shape class step together.

    Newcomers are encoded at once and join, up to `max_batch`; the shape classes take turns.
    """

    def __init__(self, costs: CostModel, capacity: int, max_batch: int) -> None:
        super().__init__(costs, capacity)
        self._max_batch = max_batch
        self._last: Shape = None

    def next(self, now: float) -> Work | None:
        for request in list(self._queue):
            if sum(other.ticket.shape == request.ticket.shape for other in self._group) < self._max_batch:
                self._queue.remove(request)
                self._group.append(request)
        for request in self._group:
            if request.stage != "denoise":
                return _call(
                    [r for r in self._group if r.stage == request.stage and r.ticket.shape == request.ticket.shape]
                )
        shapes = list(dict.fromkeys(request.ticket.shape for request in self._group))
        if not shapes:
            return None
        turn = (shapes.index(self._last) + 1) % len(shapes) if self._last in shapes else 0
        self._last = shapes[turn]
        return _call([request for request in self._group if request.ticket.shape == self._last])


def _call(group: Iterable[_Request]) -> Work | None:
    """The next call for requests that go together; encodings run one by one."""
    requests = list(group)
    if not requests:
        return None
    for request in requests:
        if request.todo:
            return Work(request.todo[0], request.ticket.shape, (request.ticket.id,))
    return Work(requests[0].stage, requests[0].ticket.shape, tuple(request.ticket.id for request in requests))
