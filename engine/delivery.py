"""A request as the pool knows it: what became of it so far, and the worker that has it."""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

from engine.client import Event, Preview
from engine.request import Job, fingerprint


@dataclass(eq=False)
class Delivery:
    """A request on its way. `deaths`: workers that died while working on it; `replays`: all that died having it."""

    number: int
    request_id: str
    job: Job
    submitted: float
    events: asyncio.Queue[Event | Exception] = field(default_factory=asyncio.Queue)
    shown: set[int] = field(default_factory=set)  # steps whose previews were delivered
    deaths: int = 0
    replays: int = 0
    over: bool = False

    @cached_property
    def fingerprint(self) -> Hashable:
        """See `engine.request.fingerprint`."""
        return fingerprint(self.job)

    def is_twin_of(self, other: "Delivery") -> bool:
        """Whether both ask for the same picture. Fingerprints come last, because they read the control image."""
        mine, others = self.job, other.job
        return mine.prompt == others.prompt and mine.seed == others.seed and self.fingerprint == other.fingerprint

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
