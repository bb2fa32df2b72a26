"""POST /v1/images/edits: forms, good and bad."""

import io
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.test_bad_input import refusal
from tests.server.test_images import PROMPT

ROUTE = "/v1/images/edits"
FIELD = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--x--\r\n'  # which is no UTF-8


def picture(width: int = 80, height: int = 80, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def edit(server: Any) -> Any:
    def post(image: bytes | None = None, **fields: Any) -> httpx.Response:
        files = {"image": ("a.png", picture() if image is None else image)}
        return httpx.post(server.url + ROUTE, files=files, data={"prompt": PROMPT, "seed": "7", **fields}, timeout=120)

    return post


@pytest.mark.parametrize(
    ("shape", "fields", "expected"),
    [
        ((80, 80), {}, "64x64"),
        ((300, 160), {}, "96x48"),
        ((300, 160), {"size": "auto"}, "96x48"),
        ((300, 160), {"size": "64x64"}, "64x64"),
        ((80, 80), {"size": "1920x1080", "size_match": "nearest"}, "96x48"),
    ],
)
def test_the_image_chooses_the_size_unless_it_is_given(
    edit: Any, shape: tuple[int, int], fields: dict[str, str], expected: str
) -> None:
    assert edit(picture(*shape), **fields).json()["size"] == expected


def test_the_image_steers_the_picture(edit: Any) -> None:
    plain = edit(control_type="none").json()["data"]
    assert edit(strength="2").json()["data"] != plain
    assert (
        edit(strength="2", control_type="hed").json()["data"]
        == edit(strength="2", control_type="picture").json()["data"]
    )
    assert edit(strength="2", control_type="edges").json()["data"] != edit(strength="2").json()["data"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "out_of_range"),
        ({"steps": "9"}, "steps", "out_of_range"),
        ({"steps": "four"}, "steps", "invalid_value"),
        ({"strength": "nan"}, "strength", "out_of_range"),
        ({"n": "11"}, "n", "out_of_range"),
        ({"mask": "x"}, "mask", "unknown_parameter"),
        ({"control": "x"}, "control", "unknown_parameter"),
        ({"seed": ["1", "2"]}, "seed", "invalid_value"),
    ],
)
def test_wrong_fields(edit: Any, fields: dict[str, Any], param: str, code: str) -> None:
    error = refusal(edit(**fields), 422)
    assert (error["param"], error["code"]) == (param, code)


def test_wrong_files(edit: Any, server: Any) -> None:
    error = refusal(edit(b"GIF89a"), 400)
    assert error["param"] == "image" and error["code"] == "invalid_image"
    for files, param in (
        ({"mask": ("m.png", picture()), "image": ("a.png", picture())}, "mask"),
        ({"file": ("a.png", picture())}, "file"),
        ([("image[]", ("a.png", picture())), ("image[]", ("b.png", picture()))], "image"),
    ):
        response = httpx.post(server.url + ROUTE, files=files, data={"prompt": PROMPT}, timeout=120)
        assert refusal(response, 422)["param"] == param
    response = httpx.post(server.url + ROUTE, files={"x": b""}, data={"prompt": PROMPT}, timeout=120)
    assert refusal(response, 422)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"", 422),
        ("multipart/form-data; boundary=x", b"nonsense", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nnameless\r\n--x--\r\n", 400),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ncut', 422),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n1\r\n--x--',
            422,
        ),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"a: b\r\n" * 10_000, 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 40 + b"--x--\r\n",
            400,
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"1" * 70_000 + b"\r\n--x--\r\n",
            400,
        ),
        *(
            (f"multipart/form-data; boundary=x; charset={charset}", FIELD, status)
            for charset, status in (
                ("undefined", 400),
                ("punycode", 400),
                ("utf-7", 400),
                ("nonsense", 400),
                ("", 400),
                ("UTF8", 422),
                ("us-ascii", 422),
                ("latin-1", 422),
            )
        ),
    ],
)
def test_what_is_no_form(client: httpx.Client, kind: str, body: bytes, status: int) -> None:
    refusal(client.post(ROUTE, content=body, headers={"Content-Type": kind}), status)
