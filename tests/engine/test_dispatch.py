"""Which worker gets what, step by step. The workers are stand-ins that only note what they are given."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from engine.booked import Booked
from engine.bundle import Bundle
from engine.client import WorkerState
from engine.delivery import Delivery
from engine.dispatch import Dispatcher
from engine.messages import Submit, ToWorker
from engine.request import GenerateRequest, validate
from server.settings import DEMO_BUNDLE


@dataclass(eq=False)
class StandIn:
    state: WorkerState = "warm"
    silent: bool = False
    free: list[int] = field(default_factory=lambda: list(range(16)))
    booked: Booked = field(default_factory=Booked)
    has: list[int] = field(default_factory=list)
    shared: Any = field(default_factory=lambda: SimpleNamespace(write_control=lambda slot, job: None))

    def expected_seconds(self, job: object) -> float:
        return 1.0

    def send(self, message: ToWorker) -> None:
        if isinstance(message, Submit):
            self.has.append(message.number)
        else:
            self.has.remove(message.number)


class Room:
    """A dispatcher with some workers."""

    def __init__(self, workers: int) -> None:
        self.workers = [StandIn() for _ in range(workers)]
        self.dispatcher = Dispatcher(self.workers, self._late)  # type: ignore[arg-type]
        self._manifest = Bundle.load(DEMO_BUNDLE).manifest
        self._deliveries: list[Delivery] = []

    def _late(self, delivery: Delivery, seconds: float) -> None:
        raise AssertionError("nobody is late here")

    def submit(self, suspect: bool = False, **changes: Any) -> Delivery:
        number = len(self._deliveries)
        request = replace(GenerateRequest("apple", seed=number), **changes)
        delivery = Delivery(number, str(number), validate(request, self._manifest), float(number))
        delivery.suspect = suspect
        self._deliveries.append(delivery)
        self.dispatcher.dispatch(delivery)
        return delivery

    def finish(self, worker: StandIn, number: int) -> None:
        worker.has.remove(number)
        self.dispatcher.release(worker, number)  # type: ignore[arg-type]

    def die(self, worker: StandIn) -> list[int]:
        worker.state, worker.free, worker.has = "restarting", [], []
        lost = self.dispatcher.lose(worker)  # type: ignore[arg-type]
        self.dispatcher.pump()
        return [place.delivery.number for place in lost]

    def revive(self, worker: StandIn) -> None:
        worker.state, worker.free = "warm", list(range(16))
        self.dispatcher.pump()


@pytest.fixture
def room() -> Callable[[int], Room]:
    return Room


def test_a_suspect_gets_an_idle_worker_at_once(room: Callable[[int], Room]) -> None:
    two = room(2)
    first, second = two.workers
    two.submit()
    suspect = two.submit(suspect=True)
    two.submit()
    assert (first.has, second.has) == ([0, 2], [suspect.number])
    two.finish(second, suspect.number)
    two.submit()
    assert second.has == [3]


def test_without_an_idle_worker_one_is_cleared(room: Callable[[int], Room]) -> None:
    two = room(2)
    first, second = two.workers
    for _ in range(3):
        two.submit()
    assert (first.has, second.has) == ([0, 2], [1])
    for _ in range(2):
        two.submit(suspect=True)
    two.submit()
    assert (first.has, second.has) == ([0, 2, 5], [1])
    two.finish(second, 1)
    assert second.has == [3]
    two.finish(second, 3)
    assert second.has == [4], "it was idle again, and nobody else waited"


def test_those_who_wait_come_before_the_next_suspect(room: Callable[[int], Room]) -> None:
    one = room(1)
    [worker] = one.workers
    one.submit()
    for _ in range(2):
        one.submit(suspect=True)
    for _ in range(2):
        one.submit()
    assert worker.has == [0]
    one.finish(worker, 0)
    assert worker.has == [1]
    one.finish(worker, 1)
    assert worker.has == [3, 4]
    one.submit()
    one.finish(worker, 3)
    one.finish(worker, 4)
    assert worker.has == [2]
    one.finish(worker, 2)
    assert worker.has == [5]


def test_another_worker_is_found_when_the_cleared_one_dies(room: Callable[[int], Room]) -> None:
    two = room(2)
    first, second = two.workers
    for _ in range(3):
        two.submit()
    suspect = two.submit(suspect=True)
    assert two.die(second) == [1]
    two.submit()
    assert first.has == [0, 2], "it is cleared now"
    two.revive(second)
    assert second.has == [4], "who waited comes first"
    for number in (0, 2):
        two.finish(first, number)
    assert first.has == [suspect.number]


def test_a_worker_that_comes_back_idle_gets_the_suspect_and_the_other_is_cleared_no_more(
    room: Callable[[int], Room],
) -> None:
    two = room(2)
    first, second = two.workers
    two.die(second)
    for _ in range(2):
        two.submit()
    suspect = two.submit(suspect=True)
    two.revive(second)
    assert second.has == [suspect.number]
    two.submit()
    assert first.has == [0, 1, 3]


def test_a_suspect_that_leaves_lets_others_in(room: Callable[[int], Room]) -> None:
    one = room(1)
    [worker] = one.workers
    one.submit()
    suspect = one.submit(suspect=True)
    one.submit()
    assert worker.has == [0]
    one.dispatcher.recall(suspect)
    assert worker.has == [0, 2]


def test_twins_meet_but_not_in_a_silent_worker_nor_at_the_price_of_a_deadline(room: Callable[[int], Room]) -> None:
    two = room(2)
    first, second = two.workers
    for _ in range(2):
        two.submit(seed=7)
    assert (first.has, second.has) == ([0, 1], [])
    two.submit(seed=7, timeout=60.0)
    assert second.has == [2]
    two.submit(seed=7, timeout=60.0)
    assert first.has == [0, 1, 3], "both have it, and none is idle"
    first.silent = True
    two.submit(seed=7)
    assert second.has == [2, 4]
