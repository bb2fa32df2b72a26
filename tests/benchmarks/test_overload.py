"""The overload benchmark's own arithmetic, on a server that is ideal, in time that passes as it is slept through."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from benchmarks.client import Answer
from benchmarks.overload import Outcome, Prompts, closed_loop, open_loop, summarise

T = TypeVar("T")

RATE = 5.0  # pictures a second
SECONDS = 20.0
DEADLINE = 2.0


class Sleepless(selectors.DefaultSelector):
    """Where others wait, its clock jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return super().select(0)


def simulate(work: Coroutine[Any, Any, T]) -> T:
    selector = Sleepless()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)


class Ideal(Prompts):
    """One picture after the other, each in the same time; whoever would wait beyond the deadline is refused at once."""

    def __init__(self) -> None:
        self.free = 0.0

    async def ask(self, deadline: float) -> Answer:
        now = asyncio.get_running_loop().time()
        done = max(self.free, now) + 1 / RATE
        if done - now > deadline:
            return Answer(429, 0.0, 1)
        self.free = done
        await asyncio.sleep(done - now)
        return Answer(200, done - now, None)


def test_an_ideal_server_makes_under_overload_what_it_makes_at_capacity() -> None:
    async def both() -> tuple[float, list[Outcome], float]:
        server = Ideal()
        before = await closed_loop(server, SECONDS)
        outcomes = await open_loop(server, 10 * RATE, SECONDS, DEADLINE)
        return before, outcomes, await closed_loop(server, SECONDS)

    before, outcomes, after = simulate(both())
    report = summarise((before + after) / 2, outcomes, SECONDS, DEADLINE)
    one = 1 / SECONDS  # picture, which the end may cut off
    assert report.capacity == pytest.approx(RATE, abs=one)
    assert report.goodput == pytest.approx(RATE, abs=one) and report.goodput <= RATE
    # Those that were accepted shortly before the end are counted as such, but not as made within the time.
    assert report.accepted == pytest.approx(RATE * (SECONDS + DEADLINE), abs=2)
    assert (report.kept, report.failed) == (1.0, 0)
    assert report.refused == len(outcomes) - report.accepted > 8 * RATE * SECONDS
