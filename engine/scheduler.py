"""Decides, call by call, what the device does next. Pure: no tensors, no threads, no clock of its own."""

from collections.abc import Hashable, Iterable
from math import inf

from engine.costs import CostModel
from engine.plan import Flight, choose
from engine.ticket import Finished, Refused, Stage, Ticket, Work


class Scheduler:
    """Holds the requests of one device, from admission to the finished picture.

    The caller alternates `next`, the call itself, and `finish`; in between it may admit and cancel. Identical
    requests are computed once: the first ticket of a key gives the computation its id, later ones join its audience.
    At most `capacity` tickets are held, and at most `max_batch` samples share a call.
    """

    def __init__(self, costs: CostModel, max_batch: int, capacity: int) -> None:
        self.costs = costs
        self._max_batch = max_batch
        self._capacity = capacity
        self._flights: dict[str, Flight] = {}
        self._keys: dict[Hashable, Flight] = {}
        self._tickets: dict[str, Flight] = {}

    @property
    def queued(self) -> int:
        """Tickets for which nothing was done yet."""
        return sum(len(flight.audience) for flight in self._flights.values() if not flight.begun)

    @property
    def running(self) -> int:
        """Tickets for which something was done."""
        return sum(len(flight.audience) for flight in self._flights.values() if flight.begun)

    def wanted(self, id: str) -> bool:
        """Whether the computation under this id goes on; if not, its tensors can go."""
        return id in self._flights

    def audience(self, id: str) -> tuple[str, ...]:
        """The tickets that wait for the computation under this id."""
        return tuple(self._flights[id].audience)

    def admit(self, ticket: Ticket, now: float) -> None:
        """Take a ticket.

        Raises:
            Refused: there are `capacity` tickets already, or its deadline cannot be met.
            ValueError: its id is in use, or its numbers of steps make no sense.
        """
        if ticket.id in self._tickets or ticket.id in self._flights:
            raise ValueError(f"id {ticket.id!r} is in use")
        if not 1 <= ticket.min_steps <= ticket.steps:
            raise ValueError(f"{ticket.min_steps} to {ticket.steps} steps")
        if len(self._tickets) >= self._capacity:
            soonest = min(flight.seconds_left(self.costs) for flight in self._flights.values())
            raise Refused("queue_full", soonest)
        if ticket.deadline is not None:
            late = self.predicted_completion(ticket, now) - ticket.deadline
            if late > 0.0:
                raise Refused("deadline", late)
        flight = self._keys.get(ticket.key)
        if flight is None:
            flight = _flight(ticket)
            self._flights[flight.id] = self._keys[ticket.key] = flight
        flight.audience[ticket.id] = ticket
        flight.deadline = _earliest(flight.audience.values())
        self._tickets[ticket.id] = flight

    def predicted_completion(self, ticket: Ticket, now: float) -> float:
        """When the ticket's picture would be ready if it were admitted now."""
        flight = self._keys.get(ticket.key) or _flight(ticket)
        ahead = sum(other.seconds_left(self.costs) for other in self._flights.values() if other is not flight)
        return now + ahead + flight.seconds_left(self.costs)

    def cancel(self, id: str, now: float) -> bool:
        """Forget a ticket; a call that runs is finished, but no further one is made. False: no such ticket."""
        flight = self._tickets.pop(id, None)
        if flight is None:
            return False
        del flight.audience[id]
        flight.deadline = _earliest(flight.audience.values())
        if not flight.audience:
            self._forget(flight)
        return True

    def drop_hopeless(self, now: float) -> tuple[str, ...]:
        """Forget the tickets whose deadline cannot be met any more, even alone and with the fewest steps."""
        dropped = [
            ticket.id
            for flight in self._flights.values()
            for ticket in flight.audience.values()
            if ticket.deadline is not None and now + self._least_seconds(flight) > ticket.deadline
        ]
        for id in dropped:
            self.cancel(id, now)
        return tuple(dropped)

    def next(self, now: float) -> Work | None:
        """What to do now; None if there is nothing. Every work handed out comes back through `finish` or `abandon`."""
        work = choose(list(self._flights.values()), self.costs, self._max_batch)
        if work is not None:
            for id in work.ids:
                self._flights[id].busy = self._flights[id].begun = True
        return work

    def finish(self, work: Work, seconds: float | None, now: float) -> tuple[Finished, ...]:
        """Note that a call is done and how long it took (None: not typical, such as a hit in a cache).

        Returns the pictures that it finished; computations cancelled meanwhile are not among them.
        """
        if seconds is not None:
            self.costs.observe(work.stage, work.shape, len(work.ids), seconds)
        finished = []
        for id in work.ids:
            flight = self._flights.get(id)
            if flight is None:
                continue
            flight.busy = False
            if work.stage == "denoise":
                flight.step += 1
                flight.preview = flight.step < flight.target and flight.step in flight.ticket.previews
            elif work.stage == "preview":
                flight.preview = False
            elif work.stage == "decode":
                finished.append(Finished(id, tuple(flight.audience), flight.step))
                for ticket in flight.audience:
                    del self._tickets[ticket]
                self._forget(flight)
            else:
                flight.todo.remove(work.stage)
        return tuple(finished)

    def abandon(self, work: Work) -> None:
        """Note that a call failed without effect: its requests are as they were before."""
        for id in work.ids:
            flight = self._flights.get(id)
            if flight is not None:
                flight.busy = False

    def _least_seconds(self, flight: Flight) -> float:
        steps = max(flight.ticket.min_steps, flight.step)
        saved = (flight.target - steps) * self.costs.seconds("denoise", flight.ticket.shape)
        return flight.seconds_left(self.costs) - max(saved, 0.0)

    def _forget(self, flight: Flight) -> None:
        del self._flights[flight.id]
        if self._keys.get(flight.ticket.key) is flight:
            del self._keys[flight.ticket.key]


def _flight(ticket: Ticket) -> Flight:
    todo: list[Stage] = [stage for stage in ("text", "control") if getattr(ticket.encode, stage)]
    return Flight(ticket.id, ticket, {}, todo, ticket.steps)


def _earliest(tickets: Iterable[Ticket]) -> float:
    return min((ticket.deadline for ticket in tickets if ticket.deadline is not None), default=inf)
