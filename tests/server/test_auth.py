"""API keys and origins, as clients and browsers meet them."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from server import keys
from server.auth import KeyGate, KeyRing
from server.origins import OriginGate, known_hosts, may_use
from tests.server.edge import serving


async def whoami(request: Request) -> PlainTextResponse:
    holder = getattr(request.state, "holder", None)
    return PlainTextResponse(holder.key.name if holder else "anybody")


async def echo(socket: WebSocket) -> None:
    """Says whose session it is, then ends when the client does."""
    offered = socket.scope["subprotocols"]
    await socket.accept(offered[0] if offered else None)
    holder = getattr(socket.state, "holder", None)
    await socket.send_text(f"{holder.key.name if holder else 'anybody'} {offered}")
    async for _ in socket.iter_text():
        pass


ROUTES = [
    Route("/v1/models", whoami, methods=["GET", "POST"]),
    Route("/healthz", whoami),
    Route("/", whoami),
    Route("/static/page.js", whoami),
    WebSocketRoute("/v1/realtime", echo),
]


class Edge:
    """A served application with keys, and what it refused."""

    def __init__(self, port: int, refused: list[str], **texts: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.socket = f"ws://127.0.0.1:{port}/v1/realtime"
        self.refused = refused
        self.keys = texts


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    made = {
        "alice": keys.create("alice"),
        "slow": keys.create("slow", rate=0.001),
        "single": keys.create("single", concurrency=1),
    }
    path = tmp_path / "keys.json"
    keys.write(path, [key for _, key in made.values()])
    refused: list[str] = []
    app = Starlette(routes=ROUTES)
    paths = ("/", "/healthz", "/static/")
    app.add_middleware(KeyGate, ring=KeyRing(path), public_paths=paths, refused=refused.append)
    async with serving(app, refused) as port:
        yield Edge(port, refused, **{name: text for name, (text, _) in made.items()})


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_a_key_opens_what_is_not_public(edge: Edge) -> None:
    async with httpx.AsyncClient(base_url=edge.url) as client:
        for path in ("/", "/healthz", "/static/page.js"):
            assert (await client.get(path)).text == "anybody"
        assert (await client.get("/v1/models", headers=bearer(edge.keys["alice"]))).text == "alice"
        headers = {"Authorization": f"bearer  {edge.keys['alice']}"}
        assert (await client.get("/v1/models", headers=headers)).text == "alice"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer nonsense", "Basic {key}", "Bearer {key}x", "Bearer {other}", "{key}"],
    ids=str,
)
async def test_without_a_valid_key_nothing_opens(edge: Edge, header: str | None) -> None:
    other, _ = keys.create("alice")
    headers = {} if header is None else {"Authorization": header.format(key=edge.keys["alice"], other=other)}
    async with httpx.AsyncClient(base_url=edge.url, headers=headers) as client:
        for path in ("/v1/models", "/nowhere", "/healthz/x", "/static", "/healthz/"):
            response = await client.get(path)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
    assert set(edge.refused) == {"unauthenticated"}


async def test_rate_and_concurrency_of_a_key(edge: Edge) -> None:
    async with httpx.AsyncClient(base_url=edge.url) as client:
        slow = bearer(edge.keys["slow"])
        assert (await client.get("/v1/models", headers=slow)).status_code == 200
        refused = await client.get("/v1/models", headers=slow)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 990 <= int(refused.headers["retry-after"]) <= 1000
        single = bearer(edge.keys["single"])
        async with connect(edge.socket, additional_headers=single) as session:
            assert await session.recv() == "single []"
            refused = await client.get("/v1/models", headers=single)
            assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
            assert (await client.get("/v1/models", headers=bearer(edge.keys["alice"]))).status_code == 200


async def test_a_browsers_websocket_brings_its_key_as_a_subprotocol(edge: Edge) -> None:
    offered = [Subprotocol("pixart"), Subprotocol(f"pixart-key.{edge.keys['alice']}")]
    async with connect(edge.socket, subprotocols=offered, origin=Origin(edge.url)) as session:
        assert session.subprotocol == "pixart"  # and the application does not see the key
        assert await session.recv() == "alice ['pixart']"


async def test_a_websocket_without_a_key_is_refused_before_it_opens(edge: Edge) -> None:
    for offered in (None, [Subprotocol("pixart"), Subprotocol("pixart-key.nonsense")]):
        with pytest.raises(InvalidStatus) as error:
            async with connect(edge.socket, subprotocols=offered):
                raise AssertionError("it opened")
        assert error.value.response.status_code == 401
        assert json.loads(error.value.response.body or b"")["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("origin", "origins", "allowed"),
    [
        (None, (), True),
        ("http://host:8000", (), True),
        ("http://HOST:8000", (), True),
        ("https://host:8000", (), True),
        ("http://host", (), False),
        ("http://host:8000.evil.example", (), False),
        ("http://evil.example", ("https://good.example",), False),
        ("https://good.example", ("https://good.example",), True),
        ("http://good.example", ("https://good.example",), False),
        ("https://evil.example", ("*",), True),
        ("null", (), False),
        ("", (), False),
        ("http://[", (), False),
    ],
)
def test_pages_that_may_use_the_server(origin: Any, origins: Any, allowed: bool) -> None:
    assert may_use(origin, "host:8000", origins) is allowed


@pytest.mark.parametrize(
    ("address", "allowed", "known"),
    [
        ("127.0.0.1", (), {"localhost", "127.0.0.1", "[::1]"}),
        ("::1", (), {"localhost", "127.0.0.1", "[::1]"}),
        ("localhost", (), {"localhost", "127.0.0.1", "[::1]"}),
        ("127.0.0.2", (), {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
        ("10.0.0.1", ("a.example",), {"localhost", "127.0.0.1", "[::1]", "10.0.0.1", "a.example"}),
        ("fd00:0:0::1", ("a.example",), {"localhost", "127.0.0.1", "[::1]", "[fd00::1]", "a.example"}),
        ("Pics.example", ("a.example",), {"localhost", "127.0.0.1", "[::1]", "pics.example", "a.example"}),
        ("0.0.0.0", (), None),
        ("10.0.0.1", (), None),
        ("127.0.0.1", ("*",), None),
        ("0.0.0.0", ("Art.example",), {"art.example", "localhost", "127.0.0.1", "[::1]"}),
    ],
)
def test_names_that_the_server_goes_by(address: str, allowed: Any, known: Any) -> None:
    assert known_hosts(address, allowed) == known


@pytest.fixture
async def guarded_port() -> AsyncIterator[int]:
    app = Starlette(routes=ROUTES)
    app.add_middleware(
        OriginGate, origins=("https://good.example",), hosts=known_hosts("127.0.0.1", ()), refused=lambda reason: None
    )
    async with serving(app, []) as port:
        yield port


async def test_other_pages_cannot_have_anything_done(guarded_port: int) -> None:
    url = f"http://127.0.0.1:{guarded_port}"
    async with httpx.AsyncClient(base_url=url) as client:
        for origin, status in ((url, 200), ("https://good.example", 200), ("https://evil.example", 403)):
            assert (await client.post("/v1/models", headers={"Origin": origin})).status_code == status
        assert (await client.get("/v1/models", headers={"Origin": "https://evil.example"})).status_code == 200
    with pytest.raises(InvalidStatus) as error:
        async with connect(url.replace("http", "ws") + "/v1/realtime", origin=Origin("https://evil.example")):
            raise AssertionError("it opened")
    assert error.value.response.status_code == 403


async def test_a_name_that_was_rebound_to_this_machine_is_not_answered(guarded_port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{guarded_port}") as client:
        headers = {"Host": f"evil.example:{guarded_port}", "Origin": f"http://evil.example:{guarded_port}"}
        response = await client.get("/", headers=headers)
        assert response.status_code == 421 and response.json()["error"]["code"] == "unknown_host"
        for host in ("localhost", f"localhost:{guarded_port}", f"[::1]:{guarded_port}", "LOCALHOST:80"):
            assert (await client.get("/", headers={"Host": host})).status_code == 200
