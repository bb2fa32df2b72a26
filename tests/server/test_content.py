"""The content filter, with the real classifier and real pictures, and what is noted of each picture."""

import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.client import Event, Picture
from engine.local import LocalClient
from engine.request import GenerateRequest
from server import logs
from server.content import ContentFilter
from server.errors import ApiError
from server.metrics import Metrics
from server.recorded import RecordedClient

REQUEST = GenerateRequest("a secret garden", seed=5, steps=2, previews=1)


@pytest.fixture
async def client(tiny_bundle: Path) -> AsyncIterator[LocalClient]:
    client = LocalClient(Bundle.load(tiny_bundle), lambda: create("openvino", BackendOptions(threads=1)))
    await client.start()
    yield client
    await client.close(60)


async def events(client: RecordedClient) -> list[Event]:
    async with aclosing(client.submit(REQUEST, "one")) as stream:
        return [event async for event in stream]


async def test_the_threshold_divides() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    score = await ContentFilter(1.0).score(image)
    assert 0.0 < score < 1.0
    assert not await ContentFilter(math.nextafter(score, 1.0)).withholds(image)
    assert await ContentFilter(score).withholds(image)


async def test_pictures_and_previews_are_withheld_or_let_through(client: LocalClient) -> None:
    metrics = Metrics()
    metrics.watch(client)
    passed = await events(RecordedClient(client, metrics, content=ContentFilter(1.0)))
    assert [type(event).__name__ for event in passed] == ["Preview", "Picture"]
    with pytest.raises(ApiError) as error:
        await events(RecordedClient(client, metrics, content=ContentFilter(1e-30)))
    assert (error.value.status, error.value.code) == (400, "content_filtered")
    sample = metrics.registry.get_sample_value
    assert sample("pixart_refusals_total", {"reason": "content_filtered"}) == 1
    assert sample("pixart_stage_seconds_count", {"stage": "filter"}) == 3
    assert sample("pixart_picture_steps_count") == 1  # the second never came that far: its preview was withheld


async def test_what_is_noted_of_a_picture(client: LocalClient) -> None:
    for log_prompts in (False, True):
        facts: dict[str, object] = {}
        logs.facts.set(facts)
        picture = (await events(RecordedClient(client, Metrics(), log_prompts)))[-1]
        assert isinstance(picture, Picture)
        expected = {"steps": 2, "seed": 5, "worker": picture.worker, "cached": picture.cached, "replays": 0}
        assert facts == expected | ({"prompt": REQUEST.prompt} if log_prompts else {})
