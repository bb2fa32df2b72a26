"""How a pool comes and goes: loading that fails, deadlines without a worker, draining, and the server's own death."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import psutil
import pytest

from engine.backends import CompileError
from engine.bundle import Bundle
from engine.client import DeadlineMissed, Overloaded, WorkerFailed
from engine.pool import Pool
from server.settings import DEMO_BUNDLE
from tests.engine.faults import APPLE, OPTIONS, PATIENCE, Constant, picture, pids, running
from tests.engine.simple import SimpleBackend


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(DEMO_BUNDLE)


async def test_a_deadline_passes_even_if_no_worker_says_so(bundle: Bundle) -> None:
    options = replace(OPTIONS, heartbeat=PATIENCE)
    async with running(bundle, Constant(SimpleBackend()), 1, options) as pool:
        [pid] = pids(pool)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineMissed):
                await picture(pool, replace(APPLE, timeout=0.5), "late")
        finally:
            os.kill(pid, signal.SIGCONT)
        await picture(pool, APPLE, "apple")


async def test_draining_finishes_what_runs(bundle: Bundle) -> None:
    async with running(bundle, Constant(SimpleBackend(0.01)), 1, OPTIONS) as pool:
        tasks = [asyncio.create_task(picture(pool, replace(APPLE, seed=i), str(i))) for i in range(8)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(pool.close(PATIENCE))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refusal:
            await picture(pool, APPLE, "new")
        assert refusal.value.reason == "draining"
        assert len(await asyncio.gather(*tasks)) == 8
        await closing
        assert not pool.ready


async def test_grace_ends(bundle: Bundle) -> None:
    async with running(bundle, Constant(SimpleBackend(0.5)), 1, replace(OPTIONS, warmup=0.0)) as pool:
        stream = pool.submit(replace(APPLE, steps=8, previews=7), "long")
        await anext(stream)
        waiting = asyncio.ensure_future(anext_error(stream))
        await pool.close(0.0)
        assert isinstance(await waiting, Overloaded)


async def anext_error(stream: AsyncGenerator[object, None]) -> BaseException | None:
    try:
        async for _ in stream:
            pass
    except Exception as error:
        return error
    return None


async def test_what_never_loads_is_reported(bundle: Bundle) -> None:
    pool = Pool(bundle, [Constant(SimpleBackend(loading="refused"))])
    with pytest.raises(CompileError, match="refused"):
        await asyncio.wait_for(pool.start(), PATIENCE)
    await pool.close(0.0)


async def test_hanging_while_loading_is_reported(bundle: Bundle) -> None:
    pool = Pool(bundle, [Constant(SimpleBackend(loading="hangs"))], replace(OPTIONS, load=1.0))
    with pytest.raises(WorkerFailed, match="died 3 times while loading"):
        await asyncio.wait_for(pool.start(), PATIENCE)
    await pool.close(0.0)


SERVER = """
import asyncio
from engine.bundle import Bundle
from engine.options import PoolOptions
from engine.pool import Pool
from engine.request import GenerateRequest
from server.settings import DEMO_BUNDLE
from tests.engine.simple import SimpleBackend

async def main():
    pool = Pool(Bundle.load(DEMO_BUNDLE), [SimpleBackend] * 2, PoolOptions(warmup=0.1))
    await pool.start()
    while any(worker.state != "warm" for worker in pool.stats().workers):
        await asyncio.sleep(0.01)
    print(*(worker.pid for worker in pool._workers), flush=True)
    number = 0
    while True:
        number += 1
        async for _ in pool.submit(GenerateRequest("apple", seed=number), str(number)):
            pass

asyncio.run(main())
"""


async def test_a_killed_server_leaves_no_orphan_and_no_named_memory() -> None:
    await asyncio.to_thread(kill_a_server)


def kill_a_server() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in server.stdout.readline().split()]
        assert len(workers) == 2
        for worker in workers:
            mapped = {region.path for region in worker.memory_maps()}
            assert any(path.startswith("/memfd:pixart") for path in mapped)
            assert not any(path.startswith("/dev/shm/") for path in mapped)
        workers[1].suspend()  # not even one that cannot notice stays
        server.kill()
        server.wait()
        end = time.monotonic() + PATIENCE
        while any(alive(worker) for worker in workers):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        server.kill()
        server.wait()


def alive(process: psutil.Process) -> bool:
    """Without its parent, nobody but the system's first process waits for a dead one; until then it is a zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
