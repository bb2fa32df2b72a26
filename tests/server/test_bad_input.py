"""Every refusal names the field and its limit, in OpenAI's error shape."""

import base64
import http.client
import io
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from server.schemas import ImageRequest

ROUTE = "/v1/images/generations"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 40).decode()


def cut_png() -> str:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80.0).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()[:1000]).decode()


def png(width: int, height: int, mode: str = "1") -> str:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, once its shape was checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    assert error["message"]
    return error


PROMPT_LIMIT = "1 to 1000 characters"

OUT_OF_RANGE = [
    ({"prompt": ""}, "prompt", PROMPT_LIMIT),
    ({"prompt": " \n\t"}, "prompt", PROMPT_LIMIT),
    ({"prompt": "x" * 10_000}, "prompt", PROMPT_LIMIT),
    ({"prompt": "x" * 1001}, "prompt", PROMPT_LIMIT),
    ({"prompt": "an\0apple"}, "prompt", "without NUL"),
    ({"steps": 0}, "steps", "1 to 8"),
    ({"steps": 9}, "steps", "1 to 8"),
    ({"steps": -4}, "steps", "1 to 8"),
    ({"steps": 10**400}, "steps", "1 to 8"),
    ({"seed": -1}, "seed", f"0 to {2**63 - 1}"),
    ({"seed": 2**63}, "seed", f"0 to {2**63 - 1}"),
    ({"seed": 2**63 - 1, "n": 2}, "seed", f"seed + n - 1 is {2**63}; allowed: an integer from 0 to {2**63 - 1}"),
    ({"n": 0}, "n", "1 to 10"),
    ({"n": 11}, "n", "1 to 10"),
    ({"n": 2**70}, "n", "1 to 10"),
    ({"min_steps": 0}, "min_steps", "1 to 4"),
    ({"steps": 2, "min_steps": 3}, "min_steps", "1 to 2"),
    ({"timeout": 0}, "timeout", "above 0 to 600 seconds"),
    ({"timeout": 601}, "timeout", "above 0 to 600 seconds"),
    ({"stream": True, "partial_images": 4}, "partial_images", "0 to 3"),
    ({"stream": True, "partial_images": -1}, "partial_images", "0 to 3"),
    ({"partial_images": 1}, "partial_images", "0 without stream"),
    ({"output_format": "webp", "output_compression": 101}, "output_compression", "0 to 100"),
    ({"output_format": "webp", "output_compression": -1}, "output_compression", "0 to 100"),
    ({"output_compression": 80}, "output_compression", "100 for png"),
    ({"size": "0x0", "size_match": "nearest"}, "size", "WIDTHxHEIGHT"),
    ({"size": "128x128"}, "size", "64x64, 96x48"),
    ({"size": "48x96"}, "size", "64x64, 96x48"),
    ({"size": "128"}, "size", "WIDTHxHEIGHT"),
    ({"size": "-128x128"}, "size", "WIDTHxHEIGHT"),
    ({"size": ""}, "size", "WIDTHxHEIGHT"),
    ({"size": "9" * 50_000 + "x1"}, "size", "WIDTHxHEIGHT"),
    ({"control": {"image": png(64, 64), "strength": -0.1}}, "control.strength", "0 to 2"),
    ({"control": {"image": png(64, 64), "strength": 2.1}}, "control.strength", "0 to 2"),
]


@pytest.mark.parametrize(("body", "param", "limit"), OUT_OF_RANGE, ids=lambda value: str(value)[:40])
def test_out_of_range(client: httpx.Client, body: dict[str, Any], param: str, limit: str) -> None:
    error = refusal(client.post(ROUTE, content=json.dumps({"prompt": "an apple", **body})), 422)
    assert error["param"] == param
    assert limit in error["message"]
    assert error["type"] == "invalid_request_error" and error["code"] == "out_of_range"
    assert len(error["message"]) < 500


@pytest.mark.parametrize("stream", [False, True])
def test_a_timeout_that_cannot_be_kept_is_named(client: httpx.Client, stream: bool) -> None:
    body = {"prompt": "an apple", "timeout": 0.001, "stream": stream}
    # A server that is held up for long may find only afterwards that it was too late.
    while (response := client.post(ROUTE, json=body)).status_code == 504:
        pass
    error = refusal(response, 429)
    assert (error["code"], error["param"]) == ("deadline", "timeout")
    assert "within the timeout of 0.001 s; allow about " in error["message"]
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_strength_is_a_finite_number(client: httpx.Client, number: str) -> None:
    body = f'{{"prompt": "an apple", "control": {{"image": "{png(64, 64)}", "strength": {number}}}}}'
    assert refusal(client.post(ROUTE, content=body), 422)["param"] == "control.strength"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "prompt", "missing_parameter"),
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": ["an apple"]}, "prompt", "invalid_value"),
        ({"prompt": "an apple", "steps": "4"}, "steps", "invalid_value"),
        ({"prompt": "an apple", "steps": 4.5}, "steps", "invalid_value"),
        ({"prompt": "an apple", "steps": True}, "steps", "invalid_value"),
        ({"prompt": "an apple", "n": 1.0}, "n", "invalid_value"),
        ({"prompt": "an apple", "response_format": "url"}, "response_format", "invalid_value"),
        ({"prompt": "an apple", "qualty": "hd"}, "qualty", "unknown_parameter"),
        ({"prompt": "an apple", "quality": 3}, "quality", "invalid_value"),
        ({"prompt": "an apple", "background": "transparent"}, "background", "invalid_value"),
        ({"prompt": "an apple", "output_format": "gif"}, "output_format", "invalid_value"),
        ({"prompt": "an apple", "priority": "urgent"}, "priority", "invalid_value"),
        ({"prompt": "an apple", "stream": "yes"}, "stream", "invalid_value"),
        ({"prompt": "an apple", "control": {}}, "control.image", "missing_parameter"),
        ({"prompt": "an apple", "control": {"image": PNG, "type": "canny"}}, "control.type", "invalid_value"),
        ({"prompt": "an apple", "control": {"image": PNG, "mask": ""}}, "control.mask", "unknown_parameter"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_types_and_names(client: httpx.Client, body: dict[str, Any], param: str, code: str) -> None:
    error = refusal(client.post(ROUTE, content=json.dumps(body)), 422)
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].startswith(param)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"an apple"',
        b"\xff\xfe",
        b'{"prompt": "an apple"',
        b"[" * 100_000,
        b'{"prompt": "an apple", "steps": ' + b"9" * 5000 + b"}",
        b'{"prompt": "an apple", "\\ud800": 1}',
        b'{"prompt": "\\ud800"}',
        b" " * 100_000 + b"{",
    ],
    ids=range(12),
)
def test_what_is_no_json_object(client: httpx.Client, content: bytes) -> None:
    response = client.post(ROUTE, content=content, headers={"Content-Type": "application/json"})
    error = refusal(response, 400)
    assert error["type"] == "invalid_request_error" and error["code"] == "invalid_json"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_json_must_say_that_it_is(client: httpx.Client, kind: str) -> None:
    """Else a page of another origin could send it without asking first."""
    response = client.post(ROUTE, content=b'{"prompt": "an apple"}', headers={"Content-Type": kind})
    error = refusal(response, 415)
    assert error["code"] == "unsupported_media_type" and "application/json" in error["message"]


def test_an_unknown_model(client: httpx.Client) -> None:
    error = refusal(client.post(ROUTE, json={"prompt": "an apple", "model": "dall-e-3"}), 404)
    assert error["param"] == "model" and error["code"] == "model_not_found" and "tiny" in error["message"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("", "not a PNG, JPEG or WebP"),
        ("%%%", "not base64"),
        (base64.b64encode(b"GIF89a" + b"\0" * 100).decode(), "not a PNG, JPEG or WebP"),
        (PNG, "not a PNG, JPEG or WebP"),
        (cut_png(), "damaged"),
        (png(5000, 5000), "5000x5000 pixels; at most 16777216"),
        (png(50000, 50000), "at most 16777216"),
        (png(1, 1), "at least 8x8"),
    ],
    ids=["empty", "no base64", "gif", "header only", "cut", "large", "bomb", "one pixel"],
)
def test_control_images_that_cannot_be_used(client: httpx.Client, image: str, message: str) -> None:
    error = refusal(client.post(ROUTE, json={"prompt": "an apple", "control": {"image": image}}), 400)
    assert error["param"] == "control.image" and error["code"] == "invalid_image"
    assert message in error["message"]


def test_a_body_over_the_limit_is_refused_by_its_declared_length(client: httpx.Client) -> None:
    error = refusal(client.post(ROUTE, content=b" " * (8 * 1024 * 1024 + 1)), 413)
    assert error["code"] == "body_too_large" and "8388608 bytes" in error["message"]


def test_a_body_over_the_limit_is_refused_while_it_arrives(server: Any) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", ROUTE)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    limit = 8 * 1024 * 1024
    connection.send(b"%x\r\n%b\r\n" % (limit, b" " * limit) + b"1\r\n \r\n")  # and no end
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "body_too_large"
    connection.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (*ImageRequest.model_fields, "other")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
def test_no_json_makes_the_server_fail(client: httpx.Client, body: dict[str, Any]) -> None:
    response = client.post(ROUTE, content=json.dumps(body))
    if response.status_code != 200:
        assert response.status_code in (400, 404, 422), response.text
        refusal(response, response.status_code)
