"""Which worker gets a request, and who waits until there is one for it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from engine.delivery import Delivery, Place
from engine.messages import Cancel, Submit
from engine.supervisor import Supervisor


class Dispatcher:
    """All requests of a pool that are not over: in a worker, or waiting for one.

    A request goes where the same picture is being made already, or else to the worker that should be done first. A
    suspect gets a worker to itself, so that nobody dies with it: an idle one, or one that takes nobody else until it
    has done what it had. Those who wait meanwhile come before the next suspect. `late` is told of requests that no
    worker would finish in time, and by how many seconds.
    """

    def __init__(self, workers: Sequence[Supervisor], late: Callable[[Delivery, float], None]) -> None:
        self._late = late
        # By worker, in the order in which they got them, by number.
        self._places: dict[Supervisor, dict[int, Place]] = {worker: {} for worker in workers}
        self._waiting: list[Delivery] = []  # for a worker to get ready, or for a slot
        self._suspects: list[Delivery] = []  # that wait
        self._cleared: Supervisor | None = None  # the worker that takes nobody else before the next suspect

    def places(self) -> Iterator[Place]:
        """Of all requests that workers have."""
        return (place for places in self._places.values() for place in places.values())

    def place(self, worker: Supervisor, number: int) -> Place:
        """Where a worker has the request of this number."""
        return self._places[worker][number]

    def dispatch(self, delivery: Delivery) -> None:
        """Give a request to a worker, or let it wait until one can take it."""
        if delivery.suspect:
            self._suspects.append(delivery)
            self._isolate()
            return
        able = [worker for worker in self._places if self._takes_others(worker) and worker.free]
        if not able:
            self._waiting.append(delivery)
            return
        late = {worker: worker.booked.lateness(delivery.job, delivery.submitted) for worker in able}
        least = min(late.values())
        twins = self._holder_of_twin(delivery, able) if least > 0.0 or len(able) > 1 else None
        if least > 0.0 and not delivery.replays and twins is None:
            self._late(delivery, least)
            return
        soonest = min(able, key=lambda worker: (worker.silent, late[worker], self._expected(worker)))
        if delivery.job.timeout is not None and not self._places[soonest] and late[soonest] <= 0.0:
            twins = None  # an idle worker keeps the deadline if anybody can
        self._give(delivery, twins or soonest)

    def pump(self) -> None:
        """Try again for those that wait."""
        waiting, self._waiting = self._waiting, []
        for delivery in waiting:
            self.dispatch(delivery)
        self._isolate()

    def release(self, worker: Supervisor, number: int) -> None:
        """A worker has left this request, so others can have its place."""
        worker.free.append(self._places[worker].pop(number).slot)
        self.pump()

    def lose(self, worker: Supervisor) -> list[Place]:
        """A worker is gone; returns what it had. The caller dispatches that again, and then pumps."""
        if worker is self._cleared:
            self._cleared = None
        lost, self._places[worker] = self._places[worker], {}
        return list(lost.values())

    def recall(self, delivery: Delivery) -> None:
        """Have no more work done for it. A worker's slot is free when the worker has said that it left it."""
        if delivery in self._waiting:
            self._waiting.remove(delivery)
        if delivery in self._suspects:
            self._suspects.remove(delivery)
            if not self._suspects:
                self._cleared = None
            self.pump()  # the worker that it waited for may take others again
        for worker, places in self._places.items():
            if delivery.number in places and not delivery.over:
                worker.send(Cancel(delivery.number))

    def _takes_others(self, worker: Supervisor) -> bool:
        """Whether requests may share this worker: not if it has a suspect, or is to get the next."""
        if worker.state != "warm" or worker is self._cleared:
            return False
        return not any(place.delivery.suspect for place in self._places[worker].values())

    def _isolate(self) -> None:
        """Give suspects the workers that are idle; if there is none, clear one for the first of them."""
        warm = [worker for worker in self._places if worker.state == "warm"]
        idle = [worker for worker in warm if not self._places[worker]]
        while self._suspects and idle:
            worker = min(idle, key=lambda each: (each.silent, each is not self._cleared))
            idle.remove(worker)
            self._cleared = None
            self._give(self._suspects.pop(0), worker)
        if not self._suspects:
            self._cleared = None
        elif self._cleared is None:
            candidates = [worker for worker in warm if self._takes_others(worker)]
            self._cleared = min(candidates, key=lambda each: (each.silent, self._expected(each)), default=None)

    def _holder_of_twin(self, delivery: Delivery, able: Sequence[Supervisor]) -> Supervisor | None:
        """The worker with an identical request under way, whose picture will be this one's as well."""
        for worker in able:
            others = (place.delivery for place in self._places[worker].values())
            if not worker.silent and any(not other.over and other.is_twin_of(delivery) for other in others):
                return worker
        return None

    def _expected(self, worker: Supervisor) -> float:
        """Seconds until the worker should have done all that it has."""
        return sum(place.seconds for place in self._places[worker].values())

    def _give(self, delivery: Delivery, worker: Supervisor) -> None:
        job, slot = delivery.job, worker.free.pop()
        self._places[worker][delivery.number] = Place(delivery, slot, worker.expected_seconds(job))
        worker.shared.write_control(slot, job)
        message = Submit(
            delivery.number,
            delivery.request_id,
            replace(job, control=None),
            job.control is not None,
            slot,
            delivery.submitted,
        )
        worker.send(message)
