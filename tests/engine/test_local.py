"""The engine in a thread of this process: events in order, the same picture as without it, refusals, cancellation."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.client import Cancelled, DeadlineMissed, Event, NotReady, Overloaded, Picture, Preview
from engine.generate import Generator
from engine.local import LocalClient
from engine.request import GenerateRequest, InvalidRequest
from server.settings import DEMO_BUNDLE

APPLE = GenerateRequest("a red apple on a blue background", seed=5, previews=2)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(DEMO_BUNDLE)


def backend():
    return create("openvino", BackendOptions(threads=1))


@asynccontextmanager
async def running(bundle: Bundle, capacity: int = 8) -> AsyncIterator[LocalClient]:
    client = LocalClient(bundle, backend, capacity)
    await client.start()
    try:
        yield client
    finally:
        await client.close(5.0)


async def collect(client: LocalClient, request: GenerateRequest, name: str = "one") -> list[Event]:
    return [event async for event in client.submit(request, name)]


async def test_previews_then_the_picture_that_the_generator_makes(bundle: Bundle) -> None:
    async with running(bundle) as client:
        events = await collect(client, APPLE)
    assert [type(event) for event in events] == [Preview, Preview, Picture]
    assert [event.step for event in events if isinstance(event, Preview)] == [1, 3]
    picture = events[-1]
    assert isinstance(picture, Picture)
    expected = Generator(bundle, backend()).generate(APPLE).images[0]
    np.testing.assert_array_equal(picture.image, expected)
    assert set(picture.timings) == {"queue", "text", "control", "denoise", "decode"}
    assert client.stats().running == client.stats().queued == 0


async def test_refusals(bundle: Bundle) -> None:
    client = LocalClient(bundle, backend, 1)
    with pytest.raises(NotReady):
        await collect(client, APPLE)
    await client.start()
    with pytest.raises(InvalidRequest, match="steps"):
        await collect(client, replace(APPLE, steps=99))
    first = asyncio.create_task(collect(client, APPLE))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refusal:
        await collect(client, APPLE, "two")
    assert refusal.value.retry_after > 0
    assert len(await first) == 3
    with pytest.raises(DeadlineMissed):
        await collect(client, replace(APPLE, timeout=1e-6))
    await client.close(5.0)


async def test_cancellation(bundle: Bundle) -> None:
    async with running(bundle) as client:
        tasks = [asyncio.create_task(collect(client, APPLE, name)) for name in ("a", "b")]
        await asyncio.sleep(0)
        assert client.cancel("b")
        assert not client.cancel("c")
        assert isinstance((await tasks[0])[-1], Picture)
        with pytest.raises(Cancelled):
            await tasks[1]
        assert client.stats().cancelled == 1
