"""POST /v1/images/generations on a real server process."""

import asyncio
import base64
import io
import time
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

ROUTE = "/v1/images/generations"
PROMPT = "a red apple"


def pixels(answer: dict[str, Any]) -> list[np.ndarray]:
    """The answer's pictures, uint8 [H, W, 3]."""
    found = [Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))) for entry in answer["data"]]
    assert all(picture.format == "PNG" and picture.mode == "RGB" for picture in found)
    return [np.asarray(picture) for picture in found]


def drawing(ground: str = "black", line: str = "white") -> str:
    """A circle, as base64 PNG."""
    picture = Image.new("RGB", (64, 64), ground)
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), outline=line, width=2)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def create(client: httpx.Client) -> Any:
    def post(**body: Any) -> dict[str, Any]:
        response = client.post(ROUTE, json={"prompt": PROMPT, "seed": 7, **body})
        assert response.status_code == 200, response.text
        return response.json()

    return post


def test_a_prompt_becomes_a_png(create: Any) -> None:
    answer = create()
    (picture,) = pixels(answer)
    assert picture.shape == (64, 64, 3)
    assert abs(answer["created"] - time.time()) < 60
    assert answer["size"] == "64x64" and answer["output_format"] == "png"
    assert answer["data"][0]["seed"] == 7
    assert answer["prompt_truncated"] is False
    assert set(answer["timings"]) == {"queue", "text", "control", "denoise", "decode", "encode"}


def test_same_seed_same_picture(create: Any) -> None:
    assert create()["data"] == create()["data"]
    assert create()["data"] != create(seed=8)["data"]


def test_without_a_seed_each_picture_is_new_and_can_be_made_again(create: Any) -> None:
    first, second = create(seed=None), create(seed=None)
    assert first["data"] != second["data"]
    assert create(seed=first["data"][0]["seed"])["data"] == first["data"]


def test_pictures_of_one_request_have_consecutive_seeds(create: Any) -> None:
    together = create(n=3)
    assert [entry["seed"] for entry in together["data"]] == [7, 8, 9]
    for seed, picture in zip((7, 8, 9), pixels(together), strict=True):
        alone = pixels(create(seed=seed))[0].astype(int)
        assert np.abs(picture - alone).max() <= 2  # a batch may round differently


def test_a_size_that_is_not_square(create: Any) -> None:
    answer = create(size="96x48")
    assert answer["size"] == "96x48" and pixels(answer)[0].shape == (48, 96, 3)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_steps(create: Any, steps: int) -> None:
    assert pixels(create(steps=steps))[0].shape == (64, 64, 3)


def test_four_steps_are_the_default(create: Any) -> None:
    assert create()["data"] == create(steps=4)["data"]


def test_control_changes_the_picture_and_strength_zero_does_not(create: Any) -> None:
    plain = create()["data"]
    assert create(control={"image": drawing()})["data"] != plain
    assert create(control={"image": drawing(), "strength": 0})["data"] == plain


def test_a_drawing_on_paper_counts_as_edges(create: Any) -> None:
    chalk = create(control={"image": drawing("black", "white"), "type": "edges"})
    ink = create(control={"image": drawing("white", "black"), "type": "edges"})
    assert chalk["data"] == ink["data"]


def test_a_picture_is_controlled_by_its_edges(create: Any) -> None:
    picture = create(control={"image": drawing("white", "black"), "type": "picture"})
    assert picture["data"] != create()["data"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_control_images_of_any_size_and_format(create: Any, kind: str) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((300, 200), 60.0).convert("RGB").save(buffer, kind)
    data = f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
    assert pixels(create(control={"image": data, "type": "picture"}))[0].shape == (64, 64, 3)


@pytest.mark.parametrize(
    "prompt", ["🦉", "🍎🍏 🍊", "تفاحة حمراء على خلفية زرقاء", "תפוח", "apple\n\tred", "ﷺ" * 1000, "a" * 1000]
)
def test_any_text_within_the_limit_is_a_prompt(create: Any, prompt: str) -> None:
    answer = create(prompt=prompt)
    assert pixels(answer)[0].shape == (64, 64, 3)


def test_a_prompt_of_too_many_tokens_is_cut_and_says_so(create: Any) -> None:
    words = " ".join(["red apple"] * 90)
    longer = create(prompt=words + " blue")
    assert longer["prompt_truncated"] is True
    assert longer["data"] == create(prompt=words + " brown fox")["data"]


def test_pictures_do_not_block_the_event_loop(server: Any) -> None:
    async def overtaken(client: httpx.AsyncClient) -> bool:
        """Whether a probe that is sent after a request is answered before it."""
        work = asyncio.create_task(client.post(ROUTE, json={"prompt": PROMPT, "n": 4, "steps": 8}))
        await asyncio.sleep(0.01)
        assert (await client.get("/healthz")).status_code == 200
        first = not work.done()
        assert (await work).status_code == 200
        return first

    async def scenario() -> int:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            return sum([await overtaken(client) for _ in range(20)])

    # A blocked loop would answer no probe early; an idle one answers nearly all, but that depends on the machine.
    assert asyncio.run(scenario()) >= 3


def test_requests_at_once_get_the_pictures_they_get_alone(server: Any, create: Any) -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            bodies = [{"prompt": PROMPT, "seed": seed} for seed in range(8)]
            responses = await asyncio.gather(*(client.post(ROUTE, json=body) for body in bodies))
            return [response.json() for response in responses]

    for seed, answer in enumerate(asyncio.run(scenario())):
        assert answer["data"] == create(seed=seed)["data"]
