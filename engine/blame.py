"""On which requests workers died. By what they ask for, since clients send the same again under another id."""

import time
from collections.abc import Callable, Hashable


class Blame:
    """Counts deaths until `seconds` have passed without another. More than `replays` of them are too many."""

    def __init__(self, replays: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._replays = replays
        self._seconds = seconds
        self._clock = clock
        self._deaths: dict[Hashable, tuple[int, float]] = {}  # by fingerprint: how many, and until when they count

    def __bool__(self) -> bool:
        """Whether there is any; fingerprints are only needed then."""
        if self._deaths:
            now = self._clock()
            self._deaths = {key: (count, until) for key, (count, until) in self._deaths.items() if until > now}
        return bool(self._deaths)

    def add(self, key: Hashable) -> None:
        """One more worker died while working on such a request."""
        self._deaths[key] = (self.deaths(key) + 1, self._clock() + self._seconds)

    def deaths(self, key: Hashable) -> int:
        """How many workers died on such requests."""
        return self._deaths.get(key, (0, 0.0))[0]

    def refuses(self, key: Hashable) -> bool:
        """Whether that were too many."""
        return self.deaths(key) > self._replays

    def clear(self, key: Hashable) -> None:
        """Such a request went well, so others were to blame."""
        self._deaths.pop(key, None)
