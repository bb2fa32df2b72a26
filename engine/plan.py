"""Which requests run next: the order among them, how many share a call, and when each would be ready."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from engine.costs import CostModel
from engine.flight import Flight
from engine.ticket import Shape, Stage, Work

MARGIN = 0.03  # predictions count as so much longer


@dataclass(frozen=True)
class Plan:
    """An order of flights, when each is ready by it, and how many are late. `cut`: with no more steps than needed."""

    order: Sequence[Flight]
    ready: dict[str, float]
    late: frozenset[str]
    cut: bool = False
    alone: bool = False  # the first runs without company


@dataclass(frozen=True)
class Planner:
    """Makes plans for one device.

    `worth` and `reserve`: see `Load`. Where several wait, everything counts as `stretch` times as long.
    """

    costs: CostModel
    max_batch: int
    worth: float = 1.0
    reserve: float = 0.0
    stretch: float = 1.0

    @property
    def calm(self) -> bool:
        """Whether the load is low; if not, those yet to come would pay for what one gains by running alone."""
        return self.reserve == 0.0

    def plan(self, flights: Sequence[Flight], now: float) -> Plan:
        """The first of these that keeps every deadline, or else the one that breaks the fewest.

        By due time, what only needs decoding first; by deadline; the same with the most urgent alone; both with
        elastic requests cut short. The first also cuts them short when it leaves too little slack.
        """
        order = sorted(flights, key=lambda flight: (flight.stage != "decode", flight.due))
        if all(flight.deadline == inf for flight in flights):
            return Plan(order, {}, frozenset())
        best = self.foresee(order, now)
        if not best.late:
            return replace(best, cut=self._tight(best, now))
        urgent = sorted(flights, key=lambda flight: flight.urgency)
        elastic = any(flight.steps_left() > flight.steps_left(cut=True) for flight in flights)
        for cut in (False, True)[: 1 + elastic]:
            for alone in (False, True)[: 1 + self.calm]:
                plan = self.foresee(urgent, now, cut, alone, skip=True)
                if len(plan.late) < len(best.late):
                    best = plan
                if not best.late:
                    return best
        return best

    def _tight(self, plan: Plan, now: float) -> bool:
        """Whether somebody who could do with fewer steps should, so that slack is left for requests yet to come."""
        if self.reserve == 0.0 or not any(flight.can_be_cut for flight in plan.order):
            return False
        share = 1.0 - self.reserve
        return any(plan.ready[flight.id] - now > share * (flight.deadline - now) for flight in plan.order)

    def in_turn(self, flights: Sequence[Flight], now: float) -> Plan:
        """What becomes of them earliest deadline first, nobody put off; elastic requests are cut short if it helps."""
        urgent = sorted(flights, key=lambda flight: flight.urgency)
        plan = self.foresee(urgent, now)
        if plan.late and any(flight.steps_left() > flight.steps_left(cut=True) for flight in flights):
            plan = self.foresee(urgent, now, cut=True)
        return plan

    def foresee(
        self, order: Sequence[Flight], now: float, cut: bool = False, alone: bool = False, skip: bool = False
    ) -> Plan:
        """What becomes of flights that run in this order, in groups of a good batch size.

        With `skip`, those that would be late are put last, so that they make nobody else late.
        """
        waiting = len(order)
        stretch = (1.0 + MARGIN) * (self.stretch if waiting > 1 else 1.0)
        groups: dict[Shape, list[Flight]] = {}
        for flight in order:
            if flight.stage != "decode":
                groups.setdefault(flight.ticket.shape, []).append(flight)
        sizes = {shape: self.batch("denoise", shape, len(group), waiting) for shape, group in groups.items()}
        ready: dict[str, float] = {}
        put_off: list[Flight] = []
        seen: set[str] = set()
        clock = now
        for lead in order:
            if lead.id in seen:
                continue
            members = [lead]
            if lead.stage != "decode":
                shape = lead.ticket.shape
                size = 1 if alone and not ready else sizes[shape]
                groups[shape] = group = [flight for flight in groups[shape] if flight.id not in seen]
                members = group[:size]
            times = self._times(members, clock, cut, stretch)
            if skip and times[members.index(lead)] > lead.deadline:
                put_off.append(lead)
                seen.add(lead.id)
                continue
            for flight, time in zip(members, times, strict=True):
                ready[flight.id] = time
                seen.add(flight.id)
            clock = times[-1]
        for flight in put_off:
            clock = ready[flight.id] = self._times([flight], clock, cut, stretch)[0]
        late = frozenset(flight.id for flight in order if ready[flight.id] > flight.deadline)
        if put_off:
            order = [flight for flight in order if flight not in put_off] + put_off
        return Plan(order, ready, late, cut, alone)

    def _times(self, members: Sequence[Flight], now: float, cut: bool, stretch: float) -> list[float]:
        """When each of a group is ready: all that comes before decoding, then one decoding after the other.

        Steps are charged at the full batch's price, because somebody takes the place of whoever leaves it.
        """
        costs, shape = self.costs, members[0].ticket.shape
        decode = costs.seconds("decode", shape)
        step = costs.seconds("denoise", shape, len(members)) / len(members)
        seconds = sum(flight.seconds_besides(costs) - decode + flight.steps_left(cut) * step for flight in members)
        return [now + stretch * (seconds + (index + 1) * decode) for index in range(len(members))]

    def call(self, plan: Plan) -> Work:
        """The first call of a plan."""
        order = plan.order
        lead = order[0]
        shape = lead.ticket.shape
        if lead.stage == "decode":
            return self._together(
                "decode", [f for f in order if f.ticket.shape == shape and f.stage == "decode"], order
            )
        mates = [flight for flight in order if flight.ticket.shape == shape and flight.stage != "decode"]
        group = mates[: 1 if plan.alone else self.batch("denoise", shape, len(mates), len(order))]
        for flight in group:
            if flight.todo:
                return Work(flight.todo[0], shape, (flight.id,))
        if previews := [flight for flight in group if flight.preview]:
            return self._together("preview", previews, order)
        return Work("denoise", shape, tuple(flight.id for flight in group))

    def _together(self, stage: Stage, flights: Sequence[Flight], order: Sequence[Flight]) -> Work:
        shape = flights[0].ticket.shape
        size = self.batch(stage, shape, len(flights), len(order))
        return Work(stage, shape, tuple(flight.id for flight in flights[:size]))

    def batch(self, stage: Stage, shape: Shape, mates: int, waiting: int) -> int:
        """How many of `mates` to take into a call so that all `waiting` requests are ready earliest on average.

        Let n equal requests wait. In groups of b they are ready after c(b), 2 c(b), …, c(b) n / b: on average after
        c(b) (n / b + 1) / 2. Where a batch costs as much as its samples one by one, that is least for b = 1; where it
        costs as much as one sample, for b = n; where c(b) = fixed + b · marginal, for b = √(n · fixed / marginal).
        Requests yet to come count among those that wait (`worth`), so that near capacity throughput is all.
        """
        most = min(mates, self.max_batch)
        if most == 1:
            return 1
        behind = waiting * self.worth
        curve = self.costs.curve(stage, shape, most)
        best, least = 1, inf
        for size in range(1, most + 1):
            if (value := curve[size - 1] * (behind / size + 1.0)) < least:
                best, least = size, value
        return best
