"""Pools of real processes around a trivial model, which starts at once; what tests of their faults have in common."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from engine.bundle import Bundle
from engine.client import Picture
from engine.options import PoolOptions
from engine.pool import Pool
from engine.request import GenerateRequest
from tests.engine.simple import SimpleBackend

PATIENCE = 120.0  # seconds for what should take one or two
APPLE = GenerateRequest("apple", seed=1)
# Slow enough that a busy machine is not taken for a dead worker; and all batch sizes are measured.
OPTIONS = PoolOptions(capacity=64, heartbeat=4.0, hang=10.0, warmup=60.0)


@asynccontextmanager
async def running(
    bundle: Bundle, make: Callable[[], SimpleBackend], workers: int, options: PoolOptions
) -> AsyncIterator[Pool]:
    pool = Pool(bundle, [make] * workers, options)
    try:
        await asyncio.wait_for(pool.start(), PATIENCE)
        yield pool
    finally:
        await pool.close(PATIENCE)


class Constant:
    """A factory that can be pickled."""

    def __init__(self, backend: SimpleBackend) -> None:
        self._backend = backend

    def __call__(self) -> SimpleBackend:
        return self._backend


async def picture(pool: Pool, request: GenerateRequest, name: str) -> Picture:
    events = [event async for event in pool.submit(request, name)]
    assert isinstance(events[-1], Picture)
    return events[-1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def all_warm(pool: Pool) -> bool:
    return all(worker.state == "warm" for worker in pool.stats().workers)


def pids(pool: Pool) -> list[int]:
    return [worker.pid for worker in pool._workers if worker.pid is not None]


def restarts(pool: Pool) -> int:
    return sum(worker.restarts for worker in pool.stats().workers)
