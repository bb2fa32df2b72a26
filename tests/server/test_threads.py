"""Threads for clients' files: how many at once, how many in line, how long."""

import asyncio
import threading

import pytest

from engine.client import Overloaded
from server.threads import BoundedThreads


async def test_bounds() -> None:
    threads = BoundedThreads("test", threads=2, waiting=1, seconds=60)
    gate = threading.Event()
    present, most, lock = 0, 0, threading.Lock()

    def work() -> str:
        nonlocal present, most
        with lock:
            present += 1
            most = max(most, present)
        gate.wait(60)
        with lock:
            present -= 1
        return "done"

    tasks = [asyncio.create_task(threads.run(work)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await threads.run(work)
    gate.set()
    assert await asyncio.gather(*tasks) == ["done"] * 3
    assert most <= 2
    assert await threads.run(work) == "done"
    threads.close()


async def test_work_that_takes_too_long_is_given_up_and_keeps_its_place() -> None:
    threads = BoundedThreads("test", threads=1, waiting=1, seconds=0.05)
    gate = threading.Event()
    with pytest.raises(TimeoutError):
        await threads.run(lambda: gate.wait(60))
    after = asyncio.create_task(threads.run(lambda: "done"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not after.done()
    gate.set()
    assert await after == "done"
    threads.close()


async def test_work_at_once_needs_no_thread_and_waits_for_none() -> None:
    threads = BoundedThreads("test", threads=1, waiting=0, seconds=60)
    gate = threading.Event()
    running = asyncio.create_task(threads.run(lambda: gate.wait(60)))
    await asyncio.sleep(0)
    assert await threads.run(threading.get_ident, at_once=True) == threading.get_ident()
    gate.set()
    assert await running
    threads.close()


async def test_errors_pass_through() -> None:
    threads = BoundedThreads("test", threads=1, waiting=0, seconds=60)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0)
    threads.close()
