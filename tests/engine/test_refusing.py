"""How a pool refuses what its workers have just refused. The processes are real; the model is a trivial one."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace

import pytest
import pytest_asyncio

from engine.booked import LONGEST
from engine.bundle import Bundle
from engine.client import Overloaded, Picture
from engine.messages import Submit, ToWorker
from engine.pool import Pool
from engine.request import validate
from server.settings import DEMO_BUNDLE
from tests.engine.faults import APPLE, OPTIONS, PATIENCE, Constant, picture, running, until
from tests.engine.simple import SimpleBackend

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEP = 0.2  # seconds
HOPELESS = replace(APPLE, steps=8, timeout=3 * STEP)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncGenerator[Pool, None]:
    async with running(
        Bundle.load(DEMO_BUNDLE), Constant(SimpleBackend(STEP)), 2, replace(OPTIONS, warmup=0.0)
    ) as pool:
        await until(lambda: all(worker.state == "warm" for worker in pool.stats().workers))
        yield pool


@pytest.fixture
def asked(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of workers in the order in which requests reached them."""
    names: list[str] = []
    for worker in pool._workers:
        worker.booked.clear()

        def send(message: ToWorker, worker=worker, send=worker.send) -> None:  # type: ignore[no-untyped-def]
            if isinstance(message, Submit):
                names.append(worker.name)
            send(message)

        monkeypatch.setattr(worker, "send", send)
    return names


async def refusal(pool: Pool, name: str) -> Overloaded:
    with pytest.raises(Overloaded) as refused:
        await picture(pool, HOPELESS, name)
    assert refused.value.reason == "deadline"
    return refused.value


async def test_every_worker_is_asked_but_once(pool: Pool, asked: list[str]) -> None:
    before = pool.stats().refusals.get("deadline", 0)
    first, second, third = [await refusal(pool, str(index)) for index in range(3)]
    assert sorted(asked) == ["worker-0", "worker-1"]
    assert third.retry_after <= max(first.retry_after, second.retry_after)
    assert pool.stats().refusals["deadline"] == before + 3
    made = await picture(pool, replace(HOPELESS, steps=1), "another kind")
    assert made.steps == 1 and len(asked) == 3


async def test_it_is_asked_again_when_the_time_is_over(pool: Pool, asked: list[str]) -> None:
    waits = [(await refusal(pool, str(index))).retry_after for index in range(2)]
    await asyncio.sleep(max(waits))
    await refusal(pool, "again")
    assert len(asked) == 3


async def test_it_is_asked_again_when_something_has_left(pool: Pool, asked: list[str]) -> None:
    for index in range(2):
        await refusal(pool, str(index))
    running = asyncio.create_task(picture(pool, replace(HOPELESS, timeout=None, seed=2), "long"))
    await until(lambda: len(asked) == 3)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await until(lambda: not any(pool._dispatcher.places()))
    await refusal(pool, "again")
    assert asked[3] == asked[2]


async def test_who_may_join_others_is_not_refused_unasked(pool: Pool, asked: list[str]) -> None:
    for index in range(2):
        await refusal(pool, str(index))
    events = pool.submit(replace(HOPELESS, timeout=None), "first")
    running = asyncio.ensure_future(anext(events))
    await until(lambda: len(asked) == 3)
    await refusal(pool, "second")  # too late for that one, too, but only the worker knows
    assert len(asked) == 4 and asked[3] == asked[2]
    assert isinstance(await running, Picture)
    await events.aclose()


async def test_identical_requests_go_where_their_picture_is_made(pool: Pool, asked: list[str]) -> None:
    before = sum(pool.stats().batch_sizes.values())
    same = [picture(pool, replace(APPLE, steps=2, seed=5), f"same {index}") for index in range(3)]
    other = picture(pool, replace(APPLE, steps=2, seed=6), "other")
    made = await asyncio.gather(*same, other)
    assert len({one.worker for one in made[:3]}) == 1 and len({one.worker for one in made}) == 2
    assert sum(pool.stats().batch_sizes.values()) == before + 4


async def test_a_worker_that_has_time_is_preferred(pool: Pool, asked: list[str]) -> None:
    easy = replace(APPLE, steps=1, timeout=60.0)
    for busy, idle in (pool._workers, reversed(pool._workers)):
        busy.booked.note(validate(easy, pool.manifest), time.monotonic() + PATIENCE, LONGEST)
        assert (await picture(pool, easy, "one")).worker == idle.name
        busy.booked.clear()
    assert len(asked) == 2
