"""One computation under way, for one request or for several identical ones."""

from dataclasses import dataclass, field
from math import inf

from engine.costs import CostModel
from engine.request import Priority
from engine.ticket import Stage, Ticket

# A request is due after this many times the seconds that it takes alone. The larger, the more short requests overtake
# long ones; a due time never moves, so that nothing is overtaken for ever.
PATIENCE: dict[Priority, float] = {"interactive": 4.0, "batch": 80.0}
# How much later, in the same measure, something without a deadline may become to save the deadlines of others.
YIELD = 5.0


@dataclass(eq=False)
class Flight:
    """It bears the id of its first ticket, even when that has left; `audience` is all who wait, by id."""

    id: str
    ticket: Ticket
    alone: float  # seconds from start to end with the device to itself
    todo: list[Stage]  # encodings that are missing
    target: int  # steps that it is meant to take
    audience: dict[str, Ticket] = field(default_factory=dict)
    step: int = 0
    preview: bool = False  # one is due
    busy: bool = False  # part of a call that runs
    begun: bool = False
    company: bool = False  # it has not had the device to itself all the time
    # Of the audience:
    due: float = inf  # when the first should be ready, were there no deadlines
    deadline: float = inf  # the earliest
    urgency: float = inf  # the deadline, or its substitute
    least: int = 1  # steps that will do for everybody
    previews: frozenset[int] = frozenset()

    @classmethod
    def of(cls, ticket: Ticket, costs: CostModel) -> "Flight":
        """A computation that has not begun, with nobody waiting for it yet."""
        todo: list[Stage] = []
        if ticket.encode.text:
            todo.append("text")
        if ticket.encode.control:
            todo.append("control")
        flight = cls(ticket.id, ticket, 0.0, todo, ticket.steps, previews=ticket.previews)
        flight.alone = flight.seconds_alone(costs)
        return flight

    def join(self, ticket: Ticket) -> None:
        """Let one more wait for it."""
        self.audience[ticket.id] = ticket
        self._update()

    def leave(self, id: str) -> None:
        """Let one wait no longer."""
        del self.audience[id]
        self._update()

    def _update(self) -> None:
        tickets = list(self.audience.values())
        self.deadline = min((t.deadline for t in tickets if t.deadline is not None), default=inf)
        self.due = min((t.arrived + PATIENCE[t.priority] * self.alone for t in tickets), default=inf)
        last = min((t.arrived + YIELD * PATIENCE[t.priority] * self.alone for t in tickets), default=inf)
        self.urgency = self.deadline if self.deadline < inf else last
        self.least = max((t.min_steps for t in tickets), default=1)
        self.previews = frozenset().union(*(t.previews for t in tickets))

    @property
    def stage(self) -> Stage:
        """What it needs next."""
        if self.todo:
            return self.todo[0]
        if self.preview:
            return "preview"
        return "denoise" if self.step < self.target else "decode"

    @property
    def can_be_cut(self) -> bool:
        """Whether enough steps were taken, though not all."""
        return self.least <= self.step < self.target

    def steps_left(self, cut: bool = False) -> int:
        """Steps to take yet; if `cut`, no more than are needed."""
        return max((min(self.least, self.target) if cut else self.target) - self.step, 0)

    def seconds_besides(self, costs: CostModel) -> float:
        """What it takes from now on besides its steps."""
        shape = self.ticket.shape
        seconds = costs.seconds("decode", shape)
        for stage in self.todo:
            seconds += costs.seconds(stage, shape)
        if self.previews:
            left = sum(self.step < step < self.target for step in self.previews) + self.preview
            seconds += left * costs.seconds("preview", shape)
        return seconds

    def seconds_alone(self, costs: CostModel, cut: bool = False) -> float:
        """What it takes from now on, with the device to itself."""
        return self.seconds_besides(costs) + self.steps_left(cut) * costs.seconds("denoise", self.ticket.shape)

    def advance(self, stage: Stage) -> None:
        """Note that a call other than the last is done."""
        self.busy = False
        if stage == "denoise":
            self.step += 1
            self.preview = self.step < self.target and self.step in self.previews
        elif stage == "preview":
            self.preview = False
        else:
            self.todo.remove(stage)

    def cut(self) -> None:
        """Take no further step."""
        self.target = self.step
        self.preview = False
