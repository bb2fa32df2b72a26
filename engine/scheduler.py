"""Decides, call by call, what the device does next. Pure: no tensors, no threads, no clock of its own."""

from collections.abc import Hashable
from dataclasses import replace
from math import inf

from engine.costs import CostModel
from engine.flight import Flight
from engine.headroom import Headroom
from engine.load import Load
from engine.plan import Planner
from engine.ticket import Finished, Refused, Ticket, Work

QUIET = 60.0  # times what a request takes at best; when no call has corrected predictions for so long, they are doubted


class Scheduler:
    """Holds the requests of one device, from admission to the finished picture.

    The caller alternates `next`, the call itself, and `finish`; in between it may admit and cancel. Identical
    requests are computed once: the first ticket of a key gives the computation its id, later ones join its audience.
    At most `capacity` tickets are held, and at most `max_batch` samples share a call. Times are seconds on the
    caller's clock and never go back.
    """

    def __init__(self, costs: CostModel, max_batch: int, capacity: int) -> None:
        self.costs = costs
        self._max_batch = max_batch
        self._capacity = capacity
        self._load = Load()
        self._headroom = Headroom()
        self._flights: dict[str, Flight] = {}
        self._keys: dict[Hashable, Flight] = {}
        self._tickets: dict[str, Flight] = {}
        self._observed = -inf  # when a call last corrected the costs
        self._calls: dict[Work, tuple[float, tuple[Flight, ...]]] = {}  # those that run: since when, for whom

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
        flight = self._flights.get(id)
        return tuple(flight.audience) if flight else ()

    def admit(self, ticket: Ticket, now: float) -> None:
        """Take a ticket.

        Raises:
            Refused: there are `capacity` tickets already, or its deadline cannot be met without breaking another's.
            ValueError: its id is in use, or its numbers of steps make no sense.
        """
        if self._used(ticket.id):
            raise ValueError(f"id {ticket.id!r} is in use")
        if not 1 <= ticket.min_steps <= ticket.steps:
            raise ValueError(f"{ticket.min_steps} to {ticket.steps} steps")
        flight = self._shared(ticket)
        if flight is None:
            flight = Flight.of(ticket, self.costs)
            self._load.arrive(self._least_occupation(ticket), now)
        if len(self._tickets) >= self._capacity:
            flights, start = self._foreseeable(now)
            ready = self._planner(now).foresee(flights, start).ready.values()
            raise Refused("queue_full", max(min(ready, default=start) - now, 0.0))
        self._add(flight, ticket)
        if ticket.deadline is not None and (late := self._lateness(flight, ticket, now)) > 0.0:
            self.cancel(ticket.id, now)
            self._doubt(flight, ticket.deadline, now)
            raise Refused("deadline", late)

    def _doubt(self, refused: Flight, deadline: float, now: float) -> None:
        """Doubt a refusal for which predictions alone are the reason, and which no call has borne out lately."""
        if self._flights:
            return
        seconds = refused.seconds_alone(self.costs.at_best(), cut=True)
        if now + seconds <= deadline and now - self._observed > QUIET * seconds:
            self.costs.doubt()

    def _lateness(self, flight: Flight, ticket: Ticket, now: float) -> float:
        """By how much the deadline of `flight` or, for the ticket's sake, another's will be missed; 0 if none.

        Plans give some deadlines up where not all can be kept. Admission counts on that no more than on luck: it looks
        at everybody in turn, and tries other orders at low load only.
        """
        planner = self._planner(now, self._headroom.share)
        flights, start = self._foreseeable(now)
        in_turn = planner.in_turn(flights, start)
        if not in_turn.late or (planner.calm and not planner.plan(flights, start).late):
            return 0.0
        if flight.id in in_turn.late:
            return in_turn.ready[flight.id] - flight.deadline
        # A ticket that joins others can add previews and steps to theirs, so it leaves them.
        self.cancel(ticket.id, now)
        before = planner.in_turn(*self._foreseeable(now))
        self._add(flight, ticket)
        late = in_turn.late - before.late
        return max((in_turn.ready[id] - self._flights[id].deadline for id in late), default=0.0)

    def predicted_completion(self, ticket: Ticket, now: float) -> float:
        """When the ticket's picture would be ready if it were admitted now."""
        flights, start = self._foreseeable(now)
        flight = self._shared(ticket)
        if flight is None:
            flight = Flight.of(ticket, self.costs)
            flight.join(ticket)
            flights.append(flight)
        planner = self._planner(now)
        plan = planner.plan(flights, start)
        return (plan if plan.ready else planner.foresee(plan.order, start)).ready.get(flight.id, start)

    def cancel(self, id: str, now: float) -> bool:
        """Forget a ticket; a call that runs is finished, but no further one is made. False: no such ticket."""
        flight = self._tickets.pop(id, None)
        if flight is None:
            return False
        flight.leave(id)
        if not flight.audience:
            self._forget(flight)
        return True

    def drop_hopeless(self, now: float) -> tuple[str, ...]:
        """Forget the tickets whose deadline cannot be met any more, even alone and with the fewest steps."""
        hopeless = [
            ticket.id
            for flight in self._flights.values()
            if flight.deadline < inf and flight.deadline < now + flight.seconds_alone(self.costs, cut=True)
            for ticket in flight.audience.values()
            if ticket.deadline is not None and ticket.deadline < now + flight.seconds_alone(self.costs, cut=True)
        ]
        for id in hopeless:
            self._judge(self._tickets[id], kept=False)
            self.cancel(id, now)
        return tuple(hopeless)

    def next(self, now: float) -> Work | None:
        """What to do now; None if there is nothing. Every work handed out comes back through `finish`."""
        flights = [flight for flight in self._flights.values() if not flight.busy]
        if not flights:
            return None
        planner = self._planner(now)
        plan = planner.plan(flights, now)
        if plan.cut:
            for flight in flights:
                if flight.can_be_cut and not flight.todo:
                    flight.cut()
        work = planner.call(plan)
        members = tuple(self._flights[id] for id in work.ids)
        for flight in members:
            flight.busy = flight.begun = True
        self._calls[work] = (now, members)
        return work

    def finish(self, work: Work, seconds: float | None, now: float) -> tuple[Finished, ...]:
        """Note that a call is done and how long it took (None: not typical, such as a hit in a cache).

        Returns the pictures that it finished; computations cancelled meanwhile are not among them.
        """
        if seconds is not None:
            self._observed = now
            self.costs.observe(work.stage, work.shape, len(work.ids), seconds)
        finished = []
        for flight in self._calls.pop(work)[1]:
            if work.stage != "decode":
                flight.advance(work.stage)
            elif flight.audience:
                finished.append(Finished(flight.id, tuple(flight.audience), flight.step))
                for id, ticket in flight.audience.items():
                    del self._tickets[id]
                    if ticket.deadline is not None:
                        self._judge(flight, kept=now <= ticket.deadline)
                self._forget(flight)
        return tuple(finished)

    def _judge(self, flight: Flight, kept: bool) -> None:
        """Steer the headroom, which is for those that have company."""
        if flight.company:
            (self._headroom.kept if kept else self._headroom.missed)()

    def _planner(self, now: float, headroom: float = 0.0) -> Planner:
        worth, reserve = self._load.worth(now), self._load.reserve(now)
        return Planner(self.costs, self._max_batch, worth, reserve, 1.0 + headroom)

    def _foreseeable(self, now: float) -> tuple[list[Flight], float]:
        """The computations as they will be when the calls that run have ended, and when that will be."""
        start = now
        for work, (since, _) in self._calls.items():
            start = max(start, since + self.costs.seconds(work.stage, work.shape, len(work.ids)))
        flights = []
        for flight in self._flights.values():
            if flight.busy:
                if flight.stage == "decode":
                    continue
                flight = replace(flight, todo=list(flight.todo))
                flight.advance(flight.stage)
            flights.append(flight)
        return flights, start

    def _used(self, id: str) -> bool:
        running = any(id in work.ids for work in self._calls)
        return running or id in self._tickets or id in self._flights

    def _shared(self, ticket: Ticket) -> Flight | None:
        """The computation that the ticket can join: not one that was cut too short for it."""
        flight = self._keys.get(ticket.key)
        return flight if flight is not None and flight.target >= ticket.min_steps else None

    def _least_occupation(self, ticket: Ticket) -> float:
        """Seconds of the device that the ticket takes in the best batches."""
        shape, sizes = ticket.shape, range(1, self._max_batch + 1)
        step = min(self.costs.seconds("denoise", shape, size) / size for size in sizes)
        return Flight.of(ticket, self.costs).seconds_besides(self.costs) + ticket.steps * step

    def _add(self, flight: Flight, ticket: Ticket) -> None:
        flight.join(ticket)
        if len(self._flights) > (flight.id in self._flights):
            flight.company = True
            next(iter(self._flights.values())).company = True  # the only one that might have had none
        self._flights[flight.id] = self._keys[ticket.key] = flight
        self._tickets[ticket.id] = flight

    def _forget(self, flight: Flight) -> None:
        del self._flights[flight.id]
        if self._keys.get(flight.ticket.key) is flight:
            del self._keys[flight.ticket.key]
