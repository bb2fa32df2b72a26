"""A few threads for work that clients cause: bounded in number, in line, and in time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from engine.client import Overloaded

T = TypeVar("T")


class BoundedThreads:
    """Runs at most `threads` pieces of work at once, with at most `waiting` more in line, each at most `seconds` long.

    A thread cannot be stopped from outside: work that takes too long is given up, and its place stays taken until it
    ends, so that clients can never cause more than `threads` pieces of work at a time.
    """

    def __init__(self, name: str, threads: int, waiting: int, seconds: float) -> None:
        self._executor = ThreadPoolExecutor(threads, name)
        self._free = asyncio.Semaphore(threads)
        self._most = threads + waiting
        self._seconds = seconds
        self._present = 0

    async def run(self, work: Callable[[], T], *, at_once: bool = False) -> T:
        """The result of `work`. `at_once` does it on the event loop: for work little longer than waking a thread.

        Raises:
            Overloaded: too much waits already.
            TimeoutError: it takes too long. Time in line does not count.
        """
        if at_once:
            return work()
        if self._present >= self._most:
            raise Overloaded("queue_full", 1.0)
        self._present += 1
        try:
            await self._free.acquire()
            future = asyncio.get_running_loop().run_in_executor(self._executor, work)
            future.add_done_callback(self._done)
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(future)
        finally:
            self._present -= 1

    def _done(self, future: "asyncio.Future[T]") -> None:
        self._free.release()
        if not future.cancelled():
            future.exception()  # nobody may be left to ask for it

    def close(self) -> None:
        """Begin nothing more; what runs ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)
