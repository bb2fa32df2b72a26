"""OpenAI's own client, unchanged, against a real server."""

import base64
import io
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from engine.client import DeadlineMissed, Event, Preview
from engine.request import GenerateRequest
from server.answers import Answers
from server.metrics import Metrics
from server.orders import Order
from tests.server.conftest import SECONDS
from tests.server.test_images import PROMPT, drawing


@pytest.fixture
def sdk(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def picture(data: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data or "")))


def test_models(sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list().data
    assert sdk.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError, match="not served here") as refusal:
        sdk.models.retrieve("org/other model")
    assert refusal.value.param == "model" and refusal.value.code == "model_not_found"


def test_generate(sdk: openai.OpenAI) -> None:
    answer = sdk.images.generate(
        model=sdk.models.list().data[0].id,
        prompt=PROMPT,
        n=2,
        size="auto",
        background="auto",
        moderation="low",
        quality="high",
        style="vivid",
        response_format="b64_json",
        output_format="webp",
        output_compression=70,
        user="someone",
        extra_body={"seed": 7, "steps": 2},
    )
    assert answer.data is not None and answer.output_format == "webp" and answer.size == "64x64"
    assert [picture(each.b64_json).format for each in answer.data] == ["WEBP", "WEBP"]
    assert answer._request_id


def test_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="1 to 8") as refusal:
        sdk.images.generate(prompt=PROMPT, extra_body={"steps": 9})
    assert refusal.value.param == "steps" and refusal.value.code == "out_of_range" and refusal.value.request_id
    with pytest.raises(openai.UnprocessableEntityError, match="there is no url"):
        sdk.images.generate(prompt=PROMPT, response_format="url")


CASES = [(0, 4, 0), (2, 4, 2), (3, 4, 3), (3, 2, 1), (1, 1, 0)]


@pytest.mark.parametrize(("partial_images", "steps", "expected"), CASES)
def test_stream(sdk: openai.OpenAI, partial_images: int, steps: int, expected: int) -> None:
    extra = {"seed": 7, "steps": steps}
    *partial, last = sdk.images.generate(prompt=PROMPT, stream=True, partial_images=partial_images, extra_body=extra)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * expected
    for index, event in enumerate(partial):
        assert event.type == "image_generation.partial_image" and event.partial_image_index == index
        assert picture(event.b64_json).size == (64, 64)
    assert last.type == "image_generation.completed" and last.usage.total_tokens == 0
    (whole,) = sdk.images.generate(prompt=PROMPT, extra_body=extra).data or []
    assert last.b64_json == whole.b64_json
    assert all(event.b64_json != last.b64_json for event in partial)


def test_refusals_come_before_the_stream(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError):
        sdk.images.generate(prompt="", stream=True)


async def test_errors_in_the_stream() -> None:
    """What the server writes when a picture fails under way, and what the client makes of it."""
    preview = Preview(1, 4, np.zeros((8, 8, 3), np.uint8))

    async def failing() -> AsyncGenerator[tuple[int, Event], None]:
        yield 0, preview
        raise DeadlineMissed

    order = Order(GenerateRequest(PROMPT), 1, "png", 90, "req_1", "image_generation")
    events = failing()
    frames = Answers("tiny", Metrics()).frames(order, await anext(events), events)
    body = b"".join([frame async for frame in frames])
    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, content=body, headers={"Content-Type": "text/event-stream"})
    )
    http: Any = httpx.Client(transport=transport)
    with openai.OpenAI(base_url="http://x", api_key="none", http_client=http) as client:
        stream = iter(client.images.generate(prompt=PROMPT, stream=True))
        assert next(stream).type == "image_generation.partial_image"
        with pytest.raises(openai.APIError, match="the timeout passed") as failed:
            next(stream)
    assert failed.value.code == "deadline_missed"


def test_edit(sdk: openai.OpenAI) -> None:
    image = base64.b64decode(drawing())
    extra = {"seed": 7, "strength": 1.5}
    (made,) = sdk.images.edit(image=("a.png", image), prompt=PROMPT, size="64x64", extra_body=extra).data or []
    control = {"image": drawing(), "type": "picture", "strength": 1.5}
    (same,) = sdk.images.generate(prompt=PROMPT, extra_body={"seed": 7, "control": control}).data or []
    assert made.b64_json == same.b64_json
    (listed,) = sdk.images.edit(image=[("a.png", image)], prompt=PROMPT, extra_body=extra).data or []
    assert listed.b64_json == made.b64_json
    *_, last = sdk.images.edit(image=("a.png", image), prompt=PROMPT, stream=True, partial_images=1, extra_body=extra)
    assert last.type == "image_edit.completed" and last.b64_json == made.b64_json


def test_a_client_that_leaves_a_stream_stops_the_work(sdk: openai.OpenAI, client: Any) -> None:
    def in_flight() -> float:
        return sum(
            sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
            if sample.name == "pixart_requests_in_flight" and sample.labels["route"].startswith("/v1/images")
        )

    with sdk.images.generate(prompt=PROMPT, n=10, stream=True, partial_images=3, extra_body={"steps": 8}) as events:
        next(iter(events))
    deadline = time.monotonic() + SECONDS
    while in_flight() and time.monotonic() < deadline:
        pass
    assert in_flight() == 0
