"""How fast a client may send: no faster than it is read from."""

import asyncio
import time


class Pace:
    """Lets `rate` messages a second through, and as many at once after a pause. Faster senders wait on TCP's own terms:
    what is not read from the socket fills its window, and nothing is refused or kept in memory.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._allowance = rate
        self._last = time.monotonic()

    async def wait(self) -> None:
        """Return when the next message may be handled."""
        now = time.monotonic()
        self._allowance = min(self._rate, self._allowance + (now - self._last) * self._rate) - 1
        self._last = now
        if self._allowance < 0:
            await asyncio.sleep(-self._allowance / self._rate)
