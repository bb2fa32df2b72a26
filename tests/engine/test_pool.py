"""The pool with a worker on the demo model: what it makes, in company and alone, and how it takes and refuses."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from engine.backends import BackendOptions, create
from engine.bundle import Bundle, BundleError
from engine.client import Cancelled, EngineClient, Event, NotReady, Overloaded, Picture, Preview
from engine.generate import Generator
from engine.options import PoolOptions, backends
from engine.pool import Pool
from engine.request import GenerateRequest, InvalidRequest
from server.settings import DEMO_BUNDLE

pytestmark = pytest.mark.asyncio(loop_scope="module")

APPLE = GenerateRequest("a red apple on a blue background", seed=5)
CAPACITY = 8


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(DEMO_BUNDLE)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> BackendOptions:
    return BackendOptions(threads=1, cache=tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="module")
def generator(bundle: Bundle, options: BackendOptions) -> Generator:
    return Generator(bundle, create("openvino", options))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(bundle: Bundle, options: BackendOptions, generator: Generator) -> AsyncGenerator[Pool, None]:
    lines: list[str] = []
    pool = Pool(
        bundle, backends("openvino", options, 1), PoolOptions(CAPACITY, heartbeat=60.0, hang=600.0), lines.append
    )
    with pytest.raises(NotReady):
        await collect(pool, APPLE)
    assert not pool.ready
    await pool.start()
    assert pool.ready
    assert any("compiled 6 modules" in line for line in lines)
    yield pool
    await pool.close(60.0)
    assert [worker.state for worker in pool.stats().workers] == ["stopped"]


async def collect(client: EngineClient, request: GenerateRequest, name: str = "one") -> list[Event]:
    return [event async for event in client.submit(request, name)]


async def picture(client: EngineClient, request: GenerateRequest, name: str = "one") -> Picture:
    last = (await collect(client, request, name))[-1]
    assert isinstance(last, Picture)
    return last


async def test_previews_then_the_picture_that_the_generator_makes(pool: Pool, generator: Generator) -> None:
    events = await collect(pool, replace(APPLE, previews=2))
    assert [type(event) for event in events] == [Preview, Preview, Picture]
    assert [event.step for event in events if isinstance(event, Preview)] == [1, 3]
    assert all(event.image.std() > 0 for event in events)
    last = events[-1]
    assert isinstance(last, Picture)
    np.testing.assert_array_equal(last.image, generator.generate(APPLE).images[0])
    assert list(last.timings) == ["queue", "text", "control", "denoise", "decode"]
    assert (last.seed, last.steps, last.replays, last.worker) == (5, 4, 0, "worker-0")


async def test_in_any_company_the_picture_is_the_same(
    pool: Pool, generator: Generator, rng: np.random.Generator
) -> None:
    scribble = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    requests = [
        APPLE,
        replace(APPLE, seed=6, steps=2),
        GenerateRequest("a green frog", seed=2**63 - 1),
        replace(APPLE, control=scribble, control_kind="picture", strength=0.7),
        replace(APPLE, control=scribble),
    ]
    made = await asyncio.gather(*(picture(pool, request, str(i)) for i, request in enumerate(requests)))
    for request, one in zip(requests, made, strict=True):
        expected = generator.generate(request).images[0].astype(int)
        assert np.abs(one.image.astype(int) - expected).max() <= 1
    stats = pool.stats()
    assert stats.queued == stats.running == 0
    assert stats.prompt_hits > 0 and stats.prompt_misses >= 2
    assert sum(size * count for size, count in stats.batch_sizes.items()) >= 4 + 2 + 4 + 4 + 4
    assert stats.workers[0].memory_bytes > 50e6


async def test_equal_requests_in_flight_are_computed_once(pool: Pool) -> None:
    before = sum(pool.stats().batch_sizes.values())
    request = replace(APPLE, seed=77)
    made = await asyncio.gather(*(picture(pool, request, str(i)) for i in range(5)))
    for one in made:
        np.testing.assert_array_equal(one.image, made[0].image)
    assert sum(pool.stats().batch_sizes.values()) == before + 4


async def test_refusals(pool: Pool) -> None:
    with pytest.raises(InvalidRequest, match="steps"):
        await collect(pool, replace(APPLE, steps=99))
    with pytest.raises(Overloaded) as late:
        await collect(pool, replace(APPLE, timeout=1e-3))
    assert late.value.reason == "deadline"
    assert late.value.retry_after > 0
    tasks = [asyncio.create_task(picture(pool, replace(APPLE, seed=i), str(i))) for i in range(CAPACITY)]
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="in use"):
        await collect(pool, APPLE, "0")
    with pytest.raises(Overloaded) as full:
        await collect(pool, APPLE, "another")
    assert full.value.reason == "queue_full"
    assert len(await asyncio.gather(*tasks)) == CAPACITY
    assert pool.stats().refusals == {"deadline": 1, "queue_full": 1}


async def test_cancellation(pool: Pool) -> None:
    before = pool.stats().cancelled
    first, second = (asyncio.create_task(collect(pool, replace(APPLE, seed=i), str(i))) for i in (91, 92))
    await asyncio.sleep(0)
    assert pool.cancel("92")
    assert not pool.cancel("92")
    assert not pool.cancel("unknown")
    with pytest.raises(Cancelled):
        await second
    assert isinstance((await first)[-1], Picture)
    # Closing the generator early cancels, too.
    stream = pool.submit(replace(APPLE, steps=8, previews=7), "early")
    assert isinstance(await anext(stream), Preview)
    await stream.aclose()
    assert pool.stats().cancelled == before + 2
    assert pool.stats().queued + pool.stats().running == 0
    await picture(pool, APPLE)


async def test_a_bundle_that_cannot_be_served(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    pool = Pool(replace(bundle, folder=tmp_path), backends("onnxruntime", BackendOptions(), 1))
    with pytest.raises(BundleError, match=r"tokenizer\.json: is not a tokenizer"):
        await pool.start()
    assert not pool.ready
    await pool.close(1.0)
