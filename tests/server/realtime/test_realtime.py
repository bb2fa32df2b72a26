"""A session with a real server process: what is asked for is what comes."""

import asyncio
import base64
import io
import re
import signal
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.server.realtime.client import drawing, pixels, session

PROMPT = "an apple"


async def test_a_prompt_becomes_the_picture_that_rest_makes(server: Any, client: httpx.Client) -> None:
    async with session(server.url) as live:
        settings = await live.update(prompt=PROMPT, seed=7, steps=2, output_format="png")
        assert settings["prompt"] == PROMPT and settings["seed"] == 7 and settings["control"]["strength"] == 1.0
        await live.send("generate")
        picture = await live.receive()
    assert picture["type"] == "image.completed"
    assert (picture["input"], picture["seed"], picture["steps"], picture["size"]) == (1, 7, 2, "64x64")
    assert set(picture["timings"]) >= {"queue", "text", "denoise", "decode", "encode"}
    assert 0 < picture["timings"]["denoise"] <= picture["latency"]
    answer = client.post("/v1/images/generations", json={"prompt": PROMPT, "seed": 7, "steps": 2}).json()
    expected = base64.b64decode(answer["data"][0]["b64_json"])
    np.testing.assert_array_equal(pixels(picture["data"]), pixels(expected))


@pytest.mark.parametrize("kind", ["edges", "picture"])
async def test_a_drawing_becomes_the_picture_that_rest_makes(
    server: Any, client: httpx.Client, rng: np.random.Generator, kind: str
) -> None:
    image = drawing(rng, 100)
    control = {"type": kind, "strength": 0.5}
    async with session(server.url) as live:
        await live.update(prompt=PROMPT, seed=7, output_format="png", control=control)
        await live.socket.send(image)
        picture = await live.until("image.completed")
        # The drawing stays for what is asked next.
        await live.send("generate")
        again = await live.until("image.completed")
        await live.send("control.clear")
        await live.send("generate")
        without = await live.until("image.completed")
    body = {"prompt": PROMPT, "seed": 7, "control": {**control, "image": base64.b64encode(image).decode()}}
    answer = client.post("/v1/images/generations", json=body).json()
    expected = pixels(base64.b64decode(answer["data"][0]["b64_json"]))
    np.testing.assert_array_equal(pixels(picture["data"]), expected)
    np.testing.assert_array_equal(pixels(again["data"]), expected)
    assert [each["input"] for each in (picture, again, without)] == [1, 2, 3]
    assert not np.array_equal(pixels(without["data"]), expected)


@pytest.mark.parametrize(("output_format", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
async def test_formats_and_quality(server: Any, output_format: str, name: str) -> None:
    sizes = []
    async with session(server.url) as live:
        await live.update(prompt=PROMPT, seed=7, size="96x48", output_format=output_format)
        for quality in (10, 95):
            await live.update(output_compression=quality)
            await live.send("generate")
            picture = await live.until("image.completed")
            assert picture["output_format"] == output_format and picture["size"] == "96x48"
            with Image.open(io.BytesIO(picture["data"])) as image:
                assert (image.format, image.size) == (name, (96, 48))
            sizes.append(len(picture["data"]))
    assert sizes[0] < sizes[1] or output_format == "png"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
async def test_control_images_in_other_formats(server: Any, rng: np.random.Generator, kind: str) -> None:
    async with session(server.url) as live:
        await live.update(prompt=PROMPT)
        await live.socket.send(drawing(rng, 64, kind))
        assert (await live.receive())["type"] == "image.completed"


async def test_without_a_seed_every_picture_has_a_new_one(server: Any) -> None:
    async with session(server.url) as live:
        await live.update(prompt=PROMPT)
        seeds = set()
        for _ in range(3):
            await live.send("generate")
            seeds.add((await live.until("image.completed"))["seed"])
    assert len(seeds) == 3


async def test_previews_come_before_their_picture(server: Any) -> None:
    shown = 0
    async with session(server.url) as live:
        await live.update(prompt=PROMPT, steps=4, previews=7)
        for number in range(1, 11):
            await live.send("generate")
            steps = []
            while (message := await live.receive())["type"] == "image.preview":
                assert message["input"] == number and message["steps"] == 4
                assert pixels(message["data"]).shape == (64, 64, 3)
                steps.append(message["step"])
            assert message["type"] == "image.completed" and message["input"] == number
            assert steps == sorted(set(steps)) and set(steps) <= {1, 2, 3}
            shown += len(steps)
    assert shown > 0


async def test_of_a_burst_the_last_is_drawn_and_all_are_accounted_for(server: Any) -> None:
    async with session(server.url) as live:
        await live.update(prompt=PROMPT, steps=8)
        for _ in range(100):
            await live.send("generate")
        found = await live.outcomes(100)
    assert found[100] == "image.completed" and set(found.values()) == {"image.completed", "superseded"}


async def test_ping(server: Any) -> None:
    async with session(server.url) as live:
        await live.send("ping", id=12)
        assert await live.receive() == {"type": "pong", "id": 12}


async def test_settings_come_back_with_the_client_id(server: Any) -> None:
    async with session(server.url) as live:
        assert not live.created["resumed"] and live.created["session"]["prompt"] == ""
        settings = await live.update(prompt=PROMPT, seed=3, control={"strength": 0.25})
        client_id = live.created["client_id"]
    async with session(server.url, client_id) as back:
        assert back.created["resumed"] and back.created["client_id"] == client_id
        assert back.created["session"] == settings
    async with session(server.url, "somebody-else") as other:
        assert not other.created["resumed"] and other.created["client_id"] != "somebody-else"


async def test_a_second_connection_takes_the_session_over(server: Any) -> None:
    async with session(server.url) as first:
        await first.update(prompt=PROMPT)
        async with session(server.url, first.created["client_id"]) as second:
            assert second.created["resumed"] and second.created["session"]["prompt"] == PROMPT
            with pytest.raises(ConnectionClosed) as closed:
                await first.receive()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4409
            await second.send("generate")
            assert (await second.receive())["type"] == "image.completed"


async def test_pages_of_other_origins_are_refused(server: Any) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with session(server.url, origin="https://example.com"):
            pass
    assert refused.value.response.status_code == 403
    assert b"origin_not_allowed" in (refused.value.response.body or b"")
    async with session(server.url, origin=server.url) as live:
        assert live.created["model"] == "tiny"


async def test_metrics(server: Any, client: httpx.Client) -> None:
    async with session(server.url) as live:
        await live.update(prompt=PROMPT)
        await live.send("generate")
        await live.until("image.completed")
        text = client.get("/metrics").text
    (sessions,) = re.findall(r"^pixart_realtime_sessions (.*)$", text, re.MULTILINE)
    assert float(sessions) >= 1
    assert 'pixart_realtime_frames_total{direction="in"}' in text
    assert 'pixart_realtime_frames_total{direction="out"}' in text


async def test_a_stopping_server_says_so(start_server: Any) -> None:
    running = start_server()
    async with session(running.url) as live:
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            await live.receive()
        # A connection that is reset loses the close frame.
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1001
    assert await asyncio.to_thread(running.process.wait, 60) == 0
