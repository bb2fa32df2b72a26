"""Latest wins: which of a session's inputs becomes a picture, and which is dropped. No I/O, no clock."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from server.realtime.protocol import DropReason

# Input that always came faster than pictures would interrupt each of them, and never show one.
MOST_INTERRUPTIONS = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Change(Generic[T]):
    """What is to be done now, in this order: stop what runs, report what was dropped, begin `start`."""

    stop: bool = False
    dropped: tuple[tuple[T, DropReason], ...] = ()
    start: T | None = None


class LatestWins(Generic[T]):
    """At most one input runs and one waits. Each has one outcome: delivered, dropped, or found at fault.

    From idle, `offer` makes an input running; `delivering` says that its picture is on its way; `done` returns to idle,
    or runs what waited. While one runs, `offer` puts the new one in the waiting place, or, with `interrupt`, in the
    place of the running one.
    """

    def __init__(self) -> None:
        self.running: T | None = None
        self.waiting: T | None = None
        self._delivering = False
        self._interruptions = 0  # in a row

    def offer(self, item: T, interrupt: bool = False) -> Change[T]:
        """Newer input has come. With `interrupt`, it need not wait for a picture that is still being made."""
        if self.running is None:
            self.running = item
            return Change(start=item)
        superseded: tuple[tuple[T, DropReason], ...] = ()
        if self.waiting is not None:
            superseded = ((self.waiting, "superseded"),)
        if interrupt and not self._delivering and self._interruptions < MOST_INTERRUPTIONS:
            interrupted = self.running
            self._interruptions += 1
            self.running, self.waiting = item, None
            return Change(True, ((interrupted, "interrupted"), *superseded), item)
        self.waiting = item
        return Change(dropped=superseded)

    def delivering(self) -> None:
        """The running input's picture is ready and on its way: too late to stop it."""
        self._delivering = True

    def done(self) -> Change[T]:
        """The running input came to its end, with or without a picture."""
        self._delivering = False
        self._interruptions = 0
        self.running, self.waiting = self.waiting, None
        return Change(start=self.running)

    def cancel(self) -> Change[T]:
        """Give up what waits, and what runs if there is still time."""
        stop = self.running is not None and not self._delivering
        given_up = (self.running if stop else None, self.waiting)
        self.waiting = None
        if stop:
            self.running = None
            self._interruptions = 0
        return Change(stop, tuple((item, "cancelled") for item in given_up if item is not None))
