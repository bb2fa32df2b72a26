"""One system call for an answer's head and its body, which uvicorn writes one after the other."""

import asyncio
from typing import Any

LARGE = 64 * 1024  # bytes; to copy them would cost more than a call


class Joined:
    """Wraps a transport: what is written waits for what follows it, though no longer than the event loop's round.

    On a loopback interface each write runs the receiver's half of TCP as well and wakes the client, which takes more
    than a quarter of the time of a short answer.
    """

    def __init__(self, whole: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.whole = whole
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        """As `asyncio.Transport.write`."""
        if not self._held:
            if len(data) > LARGE:
                self.whole.write(data)
            elif data:
                self._held = data
                self._loop.call_soon(self.flush)
        elif len(data) > LARGE:
            self.flush()
            self.whole.write(data)
        else:
            held, self._held = self._held, b""
            self.whole.write(held + data)

    def flush(self) -> None:
        """Write what waits."""
        held, self._held = self._held, b""
        if held:
            self.whole.write(held)

    def write_eof(self) -> None:
        """As `asyncio.Transport.write_eof`."""
        self.flush()
        self.whole.write_eof()

    def close(self) -> None:
        """As `asyncio.Transport.close`."""
        self.flush()
        self.whole.close()

    def __getattr__(self, name: str) -> Any:
        """All else is the transport's own."""
        return getattr(self.whole, name)
