"""What happens when workers die, hang, run out of memory, or meet a request that does any of this to them.

The processes are real and so are the faults; the model is a trivial one, which starts in no time.
"""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from engine.bundle import Bundle
from engine.client import Cancelled, Picture, Preview, WorkerFailed
from engine.generate import Generator
from engine.pool import Pool
from engine.request import GenerateRequest
from server.settings import DEMO_BUNDLE
from tests.engine.faults import APPLE, OPTIONS, PATIENCE, Constant, all_warm, picture, pids, restarts, running, until
from tests.engine.simple import SimpleBackend, token

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(DEMO_BUNDLE)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> SimpleBackend:
    faults = {token("dragon"): "kill", token("snail"): "hang once", token("moon"): "raise", token("whale"): "memory"}
    assert len(faults) == 4
    assert token("apple") not in faults
    return SimpleBackend(0.01, faults, tmp_path_factory.mktemp("once") / "happened")  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(bundle: Bundle, backend: SimpleBackend) -> AsyncGenerator[Pool, None]:
    async with running(bundle, Constant(backend), 2, OPTIONS) as pool:
        yield pool


async def under_load(pool: Pool, expected: Generator, fault: Callable[[], None], rounds: int, seed: int) -> None:
    """Clients ask for pictures all the time; after every 20 of them, once all workers are warm, comes the fault."""
    await until(lambda: all_warm(pool))
    order = random.Random(seed)
    made: list[tuple[GenerateRequest, Picture]] = []
    finished = asyncio.Event()

    async def client(number: int) -> None:
        count = 0
        while not finished.is_set():
            request = replace(
                APPLE, prompt=f"apple {number}", seed=order.randrange(2**63), steps=order.randint(1, 8), previews=0
            )
            count += 1
            made.append((request, await picture(pool, request, f"{number}-{count}")))

    async def breaker() -> None:
        try:
            for _ in range(rounds):
                await until(partial(lambda enough: len(made) >= enough and all_warm(pool), len(made) + 20))
                fault()
            await until(lambda: all_warm(pool))
        finally:
            finished.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(breaker())
        for number in range(6):
            tasks.create_task(client(number))
    for request, one in made:
        np.testing.assert_array_equal(one.image, expected.generate(request).images[0])
        assert one.steps == request.steps


async def test_killed_workers_lose_nothing(pool: Pool, bundle: Bundle, seed: int) -> None:
    order = random.Random(seed)
    before = pool.stats(), restarts(pool)
    await under_load(
        pool, Generator(bundle, SimpleBackend()), lambda: os.kill(order.choice(pids(pool)), signal.SIGKILL), 3, seed
    )
    await until(lambda: restarts(pool) >= before[1] + 3 and all_warm(pool))
    assert pool.stats().replays > before[0].replays
    assert sum(pool.stats().batch_sizes.values()) > sum(before[0].batch_sizes.values())


async def test_a_stopped_worker_is_found_and_replaced(pool: Pool, bundle: Bundle, backend: SimpleBackend) -> None:
    await until(lambda: all_warm(pool))
    stopped = pids(pool)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    made = await asyncio.wait_for(asyncio.gather(*(picture(pool, APPLE, str(i)) for i in range(4))), PATIENCE)
    for one in made:
        assert one.replays >= 1
        np.testing.assert_array_equal(one.image, Generator(bundle, backend).generate(APPLE).images[0])
    await until(lambda: all_warm(pool))
    assert not any(psutil.pid_exists(pid) for pid in stopped)


async def test_a_call_that_hangs_is_cut_off(pool: Pool, backend: SimpleBackend) -> None:
    await until(lambda: all_warm(pool))
    hangs, neighbour = await asyncio.wait_for(
        asyncio.gather(picture(pool, replace(APPLE, prompt="snail"), "snail"), picture(pool, APPLE, "apple")), PATIENCE
    )
    assert hangs.replays >= 1
    assert neighbour.image.std() > 0
    assert backend.happened is not None and backend.happened.exists()


async def test_a_request_that_kills_workers_is_refused_and_its_neighbours_are_served(pool: Pool) -> None:
    await until(lambda: all_warm(pool))
    poison = replace(APPLE, prompt="dragon")
    neighbours = [asyncio.create_task(picture(pool, replace(APPLE, seed=i), str(i))) for i in range(8)]
    with pytest.raises(WorkerFailed, match="3 workers died"):
        await asyncio.wait_for(picture(pool, poison, "dragon"), PATIENCE)
    assert len(await asyncio.wait_for(asyncio.gather(*neighbours), PATIENCE)) == 8
    before = restarts(pool)
    with pytest.raises(WorkerFailed, match="refused for a while"):
        await picture(pool, poison, "again")
    await picture(pool, APPLE, "apple")
    await until(lambda: all_warm(pool))
    assert restarts(pool) <= before + 1  # the last death's, which may have been noted later


async def test_no_neighbour_dies_twice_with_a_request_that_kills_workers(
    bundle: Bundle, backend: SimpleBackend
) -> None:
    async with running(bundle, Constant(backend), 1, OPTIONS) as pool:
        poison = asyncio.create_task(picture(pool, replace(APPLE, prompt="dragon", steps=2), "dragon"))
        neighbours = [asyncio.create_task(picture(pool, replace(APPLE, seed=i, steps=8), str(i))) for i in range(12)]
        made = await asyncio.wait_for(asyncio.gather(*neighbours), PATIENCE)
        with pytest.raises(WorkerFailed, match="3 workers died"):
            await asyncio.wait_for(poison, PATIENCE)
        assert {one.replays for one in made} <= {0, 1}
        assert pool.stats().replays <= 12 + 2


async def test_copies_of_a_request_that_kills_workers_count_as_one(bundle: Bundle, backend: SimpleBackend) -> None:
    poison = replace(APPLE, prompt="dragon")
    async with running(bundle, Constant(backend), 1, OPTIONS) as pool:
        copies = [asyncio.create_task(picture(pool, poison, f"dragon {i}")) for i in range(6)]
        await until(lambda: restarts(pool) == 1)
        later = asyncio.create_task(picture(pool, poison, "dragon again"))
        apples = [asyncio.create_task(picture(pool, replace(APPLE, seed=i, steps=8), str(i))) for i in range(6)]
        for copy in (*copies, later):
            with pytest.raises(WorkerFailed, match="3 workers died"):
                await asyncio.wait_for(copy, PATIENCE)
        made = await asyncio.wait_for(asyncio.gather(*apples), PATIENCE)
        assert [one.replays for one in made] == [0] * 6
        await until(lambda: all_warm(pool))
        assert restarts(pool) == 3


async def test_who_waits_behind_a_suspect_that_leaves_is_served(bundle: Bundle, backend: SimpleBackend) -> None:
    control = np.zeros((128, 128, 3), np.uint8)  # so that it shares no call with the others
    async with running(bundle, Constant(replace(backend, seconds=0.1)), 1, replace(OPTIONS, warmup=0.0)) as pool:
        poison = asyncio.create_task(picture(pool, replace(APPLE, prompt="dragon"), "dragon"))
        long = asyncio.create_task(picture(pool, replace(APPLE, steps=8, control=control), "long"))
        await until(lambda: restarts(pool) == 1 and pool.ready)
        behind = asyncio.create_task(picture(pool, replace(APPLE, seed=3), "behind"))
        await asyncio.sleep(0)
        assert pool.cancel("dragon")
        with pytest.raises(Cancelled):
            await poison
        made = await asyncio.wait_for(asyncio.gather(long, behind), PATIENCE)
        assert [one.replays for one in made] == [1, 0]
        assert restarts(pool) == 1


async def test_a_worker_for_which_nothing_works_any_more_is_replaced(
    bundle: Bundle, backend: SimpleBackend, tmp_path: Path
) -> None:
    fragile = replace(backend, faults={token("moon"): "break once"}, happened=tmp_path / "happened")
    async with running(bundle, Constant(fragile), 2, OPTIONS) as pool:
        await until(lambda: all_warm(pool))
        requests = [replace(APPLE, seed=i, prompt="moon" if i == 5 else "apple") for i in range(12)]
        made = await asyncio.wait_for(
            asyncio.gather(*(picture(pool, r, str(i)) for i, r in enumerate(requests))), PATIENCE
        )
        expected = Generator(bundle, SimpleBackend())
        for request, one in zip(requests, made, strict=True):
            np.testing.assert_array_equal(one.image, expected.generate(request).images[0])
        assert made[5].replays == 1
        await until(lambda: all_warm(pool))
        assert restarts(pool) == 1


async def test_a_worker_that_is_being_buried_gets_no_requests(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    await until(lambda: all_warm(pool))
    worker = pool._workers[0]
    assert worker._life is not None
    process = worker._life.process
    wait, buried = process.wait, threading.Event()

    def linger(timeout: float | None = None) -> int:
        buried.wait(PATIENCE)
        return wait(timeout)

    monkeypatch.setattr(process, "wait", linger)
    before = restarts(pool)
    process.kill()
    await until(lambda: worker.state != "warm")
    made = await asyncio.wait_for(
        asyncio.gather(*(picture(pool, replace(APPLE, seed=i), str(i)) for i in range(4))), PATIENCE
    )
    assert {(one.worker, one.replays) for one in made} == {("worker-1", 0)}
    buried.set()
    await until(lambda: all_warm(pool))
    assert restarts(pool) == before + 1


async def test_whoever_shows_the_progress_may_fail(bundle: Bundle, backend: SimpleBackend) -> None:
    def progress(line: str) -> None:
        raise BrokenPipeError

    pool = Pool(bundle, [Constant(backend)], OPTIONS, progress)
    await asyncio.wait_for(pool.start(), PATIENCE)
    [pid] = pids(pool)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: restarts(pool) == 1 and pool.ready)
    await asyncio.wait_for(picture(pool, APPLE, "apple"), PATIENCE)
    assert restarts(pool) == 1
    await pool.close(PATIENCE)


async def test_an_exception_fails_its_own_request_only(pool: Pool) -> None:
    await until(lambda: all_warm(pool))
    before = restarts(pool)
    requests = [replace(APPLE, seed=i, prompt="moon" if i == 5 else "apple") for i in range(12)]
    results = await asyncio.gather(*(picture(pool, r, str(i)) for i, r in enumerate(requests)), return_exceptions=True)
    failed = results.pop(5)
    assert isinstance(failed, WorkerFailed)
    assert "this prompt cannot be drawn" in str(failed)
    assert all(isinstance(result, Picture) for result in results)
    assert restarts(pool) == before


async def test_a_batch_that_exhausts_memory_is_split(bundle: Bundle, backend: SimpleBackend) -> None:
    async with running(bundle, Constant(backend), 1, OPTIONS) as pool:
        whales = [replace(APPLE, seed=i, prompt="whale") for i in range(8)]
        made = await asyncio.gather(*(picture(pool, request, str(i)) for i, request in enumerate(whales)))
        expected = Generator(bundle, SimpleBackend())
        for request, one in zip(whales, made, strict=True):
            np.testing.assert_array_equal(one.image, expected.generate(request).images[0])
        assert set(pool.stats().batch_sizes) <= {1, 2}
        assert 2 in pool.stats().batch_sizes
        assert restarts(pool) == 0


async def test_batches_stay_as_small_as_warm_up_found_necessary(bundle: Bundle) -> None:
    make = Constant(SimpleBackend(0.01, loading="short of memory"))
    async with running(bundle, make, 1, OPTIONS) as pool:
        await asyncio.gather(*(picture(pool, replace(APPLE, seed=i), str(i)) for i in range(6)))
        assert max(pool.stats().batch_sizes) <= 2


async def test_cancelled_requests_leave_nothing_behind(pool: Pool) -> None:
    await until(lambda: all_warm(pool))
    free = [len(worker.free) for worker in pool._workers]
    before = pool.stats()

    async def begin_and_leave(number: int) -> None:
        stream = pool.submit(replace(APPLE, seed=number, steps=8, previews=7), str(number))
        if number % 2:
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            assert pool.cancel(str(number))
            with pytest.raises(Cancelled):
                await first
        else:
            assert isinstance(await anext(stream), Preview)
            await stream.aclose()

    for start in range(0, 1000, 50):
        await asyncio.gather(*(begin_and_leave(number) for number in range(start, start + 50)))
    await until(lambda: [len(worker.free) for worker in pool._workers] == free)
    after = pool.stats()
    # Some of those that left after their first preview had their picture already, which nobody fetched.
    assert before.cancelled + 500 <= after.cancelled <= before.cancelled + 1000
    assert after.queued == after.running == 0
    # A picture or a sample left of each would be some 50 MB.
    grown = sum(worker.memory_bytes for worker in after.workers) - sum(worker.memory_bytes for worker in before.workers)
    assert grown < 40e6


@pytest.mark.slow
async def test_ten_thousand_requests_in_constant_memory(bundle: Bundle) -> None:
    # The prompt cache may grow to its limit, and no further.
    options = replace(OPTIONS, prompt_cache_bytes=2**20)
    async with running(bundle, Constant(SimpleBackend()), 2, options) as pool:
        await until(lambda: all_warm(pool))
        await ten_thousand_requests(pool)


async def ten_thousand_requests(pool: Pool) -> None:
    own = psutil.Process()

    async def some(first: int, count: int) -> None:
        for number in range(first, first + count):
            await picture(pool, replace(APPLE, prompt=f"apple {number}", seed=number, steps=1), str(number))

    def memory() -> list[int]:
        return [own.memory_info().rss, *(worker.memory_bytes for worker in pool.stats().workers)]

    await asyncio.gather(*(some(100_000 * client, 250) for client in range(8)))
    before = memory()
    await asyncio.gather(*(some(100_000 * client + 1000, 1250) for client in range(8)))
    assert all(now - then < 30e6 for now, then in zip(memory(), before, strict=True)), (before, memory())


@pytest.mark.slow
async def test_a_minute_of_kills(bundle: Bundle, backend: SimpleBackend, seed: int) -> None:
    order = random.Random(seed)
    expected = Generator(bundle, SimpleBackend())
    made = []
    end = time.monotonic() + 60.0

    async with running(bundle, Constant(backend), 2, OPTIONS) as pool:

        async def client(number: int) -> None:
            count = 0
            while time.monotonic() < end:
                request = replace(APPLE, seed=order.randrange(2**63), steps=order.randint(1, 8))
                count += 1
                made.append((request, await picture(pool, request, f"{number}-{count}")))

        async def breaker() -> None:
            while time.monotonic() < end:
                await asyncio.sleep(2.0)
                if alive := pids(pool):
                    os.kill(order.choice(alive), signal.SIGKILL)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(breaker())
            for number in range(6):
                tasks.create_task(client(number))
        assert restarts(pool) >= 10
    for request, one in made:
        np.testing.assert_array_equal(one.image, expected.generate(request).images[0])
