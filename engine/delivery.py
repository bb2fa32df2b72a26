"""A request as the pool knows it: what became of it so far, and the worker that has it."""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

from engine.client import Event, Preview
from engine.request import Job, fingerprint, settings


@dataclass(eq=False)
class Delivery:
    """A request on its way. `suspect`: a worker died on it, or on one like it; `replays`: how many died having it."""

    number: int
    request_id: str
    job: Job
    submitted: float
    events: asyncio.Queue[Event | Exception] = field(default_factory=asyncio.Queue)
    shown: set[int] = field(default_factory=set)  # steps whose previews were delivered
    suspect: bool = False
    replays: int = 0
    over: bool = False

    @cached_property
    def fingerprint(self) -> Hashable:
        """See `engine.request.fingerprint`."""
        return fingerprint(self.job)

    def is_twin_of(self, other: "Delivery") -> bool:
        """Whether both ask for the same picture."""
        # Control images are read only if all else is equal.
        return settings(self.job) == settings(other.job) and self.fingerprint == other.fingerprint

    def tell(self, event: Event | Exception) -> None:
        """Deliver; a picture or an error is the last event."""
        if not self.over:
            self.over = not isinstance(event, Preview)
            self.events.put_nowait(event)


@dataclass(eq=False)
class Place:
    """A request in a worker: its slot there, and the seconds that it was expected to add."""

    delivery: Delivery
    slot: int
    seconds: float
