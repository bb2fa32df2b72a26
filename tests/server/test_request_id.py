"""X-Request-Id on every answer, the client's own if it is harmless."""

import httpx
import pytest

from tests.server.test_images import PROMPT, ROUTE


def test_a_new_one_each_time(client: httpx.Client) -> None:
    first, second = (client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second and first.startswith("req_")


def test_the_clients_own(client: httpx.Client) -> None:
    for response in (
        client.post(ROUTE, json={"prompt": PROMPT}, headers={"X-Request-Id": "a-b.c:7"}),
        client.post(ROUTE, json={"prompt": ""}, headers={"X-Request-Id": "a-b.c:7"}),
        client.get("/nowhere", headers={"X-Request-Id": "a-b.c:7"}),
    ):
        assert response.headers["x-request-id"] == "a-b.c:7"


@pytest.mark.parametrize("value", ["", "a b", "é".encode(), 'a"b', "x" * 129])
def test_what_could_spoil_a_log_is_replaced(client: httpx.Client, value: str | bytes) -> None:
    sent = client.get(
        "/healthz", headers=[(b"X-Request-Id", value.encode() if isinstance(value, str) else value)]
    ).headers["x-request-id"]
    assert sent.startswith("req_")
