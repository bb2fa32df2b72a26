"""Spoilt bodies, forms and pictures, and bytes that are no HTTP: no 5xx, no hang, and neighbours are served."""

import base64
import io
import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.server.conftest import SECONDS
from tests.server.test_images import PROMPT, ROUTE
from tests.server.test_operations import samples

EDITS = "/v1/images/edits"
BOUNDARY = b"fuzz"
Rng = np.random.Generator


def pictures() -> list[bytes]:
    found = []
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ):
        buffer = io.BytesIO()
        Image.effect_noise((40, 24), 80.0).convert("RGB").save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


PICTURES = pictures()


def spoil(data: bytes, rng: Rng) -> bytes:
    """Flip, cut, double, insert or overwrite a few bytes."""
    spoilt = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(spoilt) + 1))
        end = min(len(spoilt), at + int(rng.integers(1, 40)))
        junk = rng.bytes(int(rng.integers(1, 20)))
        match rng.integers(0, 6):
            case 0 if at < len(spoilt):
                spoilt[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                del spoilt[at:end]
            case 2:
                spoilt[at:at] = spoilt[at:end]
            case 3:
                spoilt[at:at] = junk
            case 4:
                spoilt[at:end] = b"\xff" * (end - at)
            case _:
                del spoilt[max(1, at) :]
    return bytes(spoilt)


def body(rng: Rng) -> bytes:
    control = {"image": base64.b64encode(PICTURES[rng.integers(0, len(PICTURES))]).decode(), "strength": 0.5}
    return json.dumps({"prompt": PROMPT, "steps": 1, "control": control}).encode()


def spoilt_json(client: httpx.Client, rng: Rng) -> httpx.Response:
    return client.post(ROUTE, content=spoil(body(rng), rng), headers={"Content-Type": "application/json"})


def spoilt_control(client: httpx.Client, rng: Rng) -> httpx.Response:
    image = base64.b64encode(spoil(PICTURES[rng.integers(0, len(PICTURES))], rng)).decode()
    return client.post(ROUTE, json={"prompt": PROMPT, "steps": 1, "control": {"image": image, "type": "picture"}})


def form(image: bytes) -> bytes:
    head = b'--%b\r\nContent-Disposition: form-data; name="' % BOUNDARY
    fields = b"".join(head + b'%b"\r\n\r\n%b\r\n' % pair for pair in ((b"prompt", PROMPT.encode()), (b"steps", b"1")))
    return fields + head + b'image"; filename="a.png"\r\n\r\n' + image + b"\r\n--%b--\r\n" % BOUNDARY


def spoilt_form(client: httpx.Client, rng: Rng) -> httpx.Response:
    content = spoil(form(PICTURES[rng.integers(0, len(PICTURES))]), rng)
    kind = f"multipart/form-data; boundary={BOUNDARY.decode()}"
    return client.post(EDITS, content=content, headers={"Content-Type": kind})


def spoilt_upload(client: httpx.Client, rng: Rng) -> httpx.Response:
    content = form(spoil(PICTURES[rng.integers(0, len(PICTURES))], rng))
    kind = f"multipart/form-data; boundary={BOUNDARY.decode()}"
    return client.post(EDITS, content=content, headers={"Content-Type": kind})


CHARSETS = (b"utf-8", b"undefined", b"punycode", b"idna", b"utf-7", b"unicode_escape", b"zlib", b"mbcs", b"x")


def spoilt_kind(client: httpx.Client, rng: Rng) -> httpx.Response:
    kind = b"multipart/form-data; boundary=fuzz; charset=" + CHARSETS[rng.integers(0, len(CHARSETS))]
    kind = spoil(kind, rng) if rng.random() < 0.5 else kind
    kind = bytes(byte for byte in kind if 32 <= byte < 127)
    return client.post(EDITS, content=form(PICTURES[0]), headers={b"Content-Type": kind.strip()})


KINDS: list[Callable[[httpx.Client, Rng], httpx.Response]] = [
    spoilt_json,
    spoilt_control,
    spoilt_form,
    spoilt_upload,
    spoilt_kind,
]


def spoilt_http(url: str, rng: Rng) -> None:
    """What is no HTTP any more gets an answer or a closed connection, in time; never a 5xx."""
    content = body(rng)
    head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" % ROUTE.encode()
    message = head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(content) + content
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        try:
            connection.sendall(spoil(message[:300], rng) + message[300:])
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(12)
        except ConnectionError:
            return
    assert answer == b"" or answer[9:10] in b"1234", answer


def fuzz(server: Any, client: httpx.Client, rng: Rng, cases: int) -> None:
    good = {"prompt": PROMPT, "seed": 7, "steps": 1}
    expected = client.post(ROUTE, json=good).json()["data"]
    for case in range(cases):
        if case % 6 == 5:
            spoilt_http(server.url, rng)
        else:
            response = KINDS[case % 6](client, rng)
            assert response.status_code < 500, (case, response.text, response.request.content)
            if response.status_code != 200:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        if case % 25 == 0:
            assert client.post(ROUTE, json=good).json()["data"] == expected


def test_nothing_spoilt_makes_the_server_fail(server: Any, client: httpx.Client, rng: Rng) -> None:
    fuzz(server, client, rng, 300)


@pytest.mark.slow
def test_ten_thousand_spoilt_requests_leave_memory_flat(server: Any, client: httpx.Client, rng: Rng) -> None:
    fuzz(server, client, rng, 1000)
    before = samples(client)["process_resident_memory_bytes",]
    fuzz(server, client, rng, 9000)
    assert samples(client)["process_resident_memory_bytes",] - before < 64e6
