"""Which requests run next: the order among them, and how many share a call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from engine.costs import CostModel
from engine.ticket import Shape, Stage, Ticket, Work

Limits = Mapping[tuple[Stage, Shape], int]


@dataclass(eq=False)
class Flight:
    """One computation under way, for everybody in `audience` (by id). It bears the id of its first ticket."""

    id: str
    ticket: Ticket
    audience: dict[str, Ticket]
    todo: list[Stage]  # encodings that are missing
    target: int  # steps that it is meant to take
    step: int = 0
    preview: bool = False  # one is due
    busy: bool = False  # part of a call that runs
    begun: bool = False
    deadline: float = field(default=inf)  # the earliest of the audience

    @property
    def stage(self) -> Stage:
        """What it needs next."""
        if self.todo:
            return self.todo[0]
        if self.preview:
            return "preview"
        return "denoise" if self.step < self.target else "decode"

    def seconds_left(self, costs: CostModel) -> float:
        """What it would take alone."""
        shape = self.ticket.shape
        seconds = sum(costs.seconds(stage, shape) for stage in self.todo)
        seconds += (self.target - self.step) * costs.seconds("denoise", shape)
        return seconds + costs.seconds("decode", shape)


def choose(flights: Sequence[Flight], costs: CostModel, max_batch: int) -> Work | None:
    """The next call; None if every flight is part of one that runs."""
    ready = [flight for flight in flights if not flight.busy]
    if not ready:
        return None
    ready.sort(
        key=lambda flight: (flight.ticket.priority == "batch", flight.seconds_left(costs), flight.ticket.arrived)
    )
    lead = ready[0]
    shape, stage = lead.ticket.shape, lead.stage
    if stage in ("text", "control"):
        return Work(stage, shape, (lead.id,))
    if stage in ("preview", "decode"):
        mates = [flight for flight in ready if flight.stage == stage and flight.ticket.shape == shape]
        size = best_batch(stage, shape, len(mates), max_batch, costs)
        return Work(stage, shape, tuple(flight.id for flight in mates[:size]))
    mates = [f for f in ready if f.ticket.shape == shape and (f.todo or f.stage == "denoise")]
    size = best_batch(stage, shape, len(mates), max_batch, costs)
    for flight in mates[:size]:
        if flight.todo:
            return Work(flight.todo[0], shape, (flight.id,))
    return Work("denoise", shape, tuple(flight.id for flight in mates[:size]))


def best_batch(stage: Stage, shape: Shape, waiting: int, max_batch: int, costs: CostModel) -> int:
    """How many of `waiting` equal samples to take into each call so that they are ready earliest on average.

    Groups of b are ready after c(b), 2 c(b), …, c(b) n / b: on average after c(b) (n / b + 1) / 2. Where a batch
    costs as much as its samples one by one, that is least for b = 1; where it costs as much as one, for b = n.
    """
    sizes = range(1, min(waiting, max_batch) + 1)
    return min(sizes, key=lambda size: costs.seconds(stage, shape, size) * (waiting / size + 1.0))
