"""A picture's bytes instead of JSON, for whoever asks for them in the Accept header."""

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from server.formats import raw_format
from tests.server.test_bad_input import refusal
from tests.server.test_images import PROMPT, ROUTE

BODY = {"prompt": PROMPT, "seed": 7}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("*/*", None),
        ("application/json", None),
        ("text/html", None),
        ("image/png", "png"),
        ("IMAGE/WEBP", "webp"),
        ("image/*", "jpeg"),
        ("image/gif", None),
        ("image/gif, image/webp", "webp"),
        ("application/json, image/png", None),
        ("application/json;q=0.5, image/png", "png"),
        ("image/png;q=0.5, */*;q=0.8", None),
        ("text/html, image/webp;q=0.8, */*;q=0.5", "webp"),
        ("image/png;q=high", None),
        ("image/png;q=0", None),
        (",;q=,/,*", None),
    ],
)
def test_what_the_client_likes_best(accept: str, expected: str | None) -> None:
    assert raw_format(accept, "jpeg") == expected


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_bytes(client: httpx.Client, kind: str) -> None:
    response = client.post(ROUTE, json=BODY, headers={"Accept": f"image/{kind}"})
    assert response.status_code == 200 and response.headers["content-type"] == f"image/{kind}"
    picture = Image.open(io.BytesIO(response.content))
    assert picture.format == kind.upper() and picture.size == (64, 64)
    assert response.headers["x-seed"] == "7" and response.headers["x-steps"] == "4"
    assert response.headers["x-prompt-truncated"] == "false" and response.headers["x-request-id"]
    stages = [part.strip().partition(";dur=") for part in response.headers["server-timing"].split(",")]
    assert [name for name, _, _ in stages] == ["queue", "text", "control", "denoise", "decode", "encode"]
    assert all(float(duration) >= 0 for _, _, duration in stages)


def test_the_same_picture_is_the_same_file_and_says_how_it_was_made(client: httpx.Client) -> None:
    files = [client.post(ROUTE, json=BODY, headers={"Accept": "image/png"}).content for _ in range(2)]
    whole = base64.b64decode(client.post(ROUTE, json=BODY).json()["data"][0]["b64_json"])
    assert files == [whole, whole]
    notes = json.loads(Image.open(io.BytesIO(whole)).text["pixart"])  # type: ignore[attr-defined]
    assert notes == {"model": "tiny", "seed": 7, "steps": 4, "size": "64x64"}


@pytest.mark.parametrize(
    ("more", "param"), [({"n": 2}, "n"), ({"stream": True}, "stream"), ({"output_format": "png"}, "output_format")]
)
def test_what_does_not_go_with_it(client: httpx.Client, more: dict[str, Any], param: str) -> None:
    response = client.post(ROUTE, json=BODY | more, headers={"Accept": "image/webp"})
    assert refusal(response, 422)["param"] == param


def test_curl_writes_a_file(server: Any, tmp_path: Path) -> None:
    command = ["curl", "-sS", "--fail", server.url + ROUTE, "-H", "Content-Type: application/json"]
    command += ["-H", "Accept: image/png", "-d", json.dumps(BODY), "-o", "apple.png"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    assert Image.open(tmp_path / "apple.png").size == (64, 64)
