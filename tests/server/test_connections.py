"""Clients that are slow, endless, too many, or still sending when they are refused."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, error_response
from server.limits import BodyLimit
from server.serve import listen
from tests.server.edge import SECONDS, connection, serving

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


async def length(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def refuse(request: Request) -> Any:
    return error_response(ApiError(401, "who are you?", code="invalid_api_key"))


async def endless(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


def application(refused: list[str], max_bytes: int = 1000, seconds: float = SECONDS) -> ASGIApp:
    routes = [
        Route("/", length, methods=["GET", "POST"]),
        Route("/refuse", refuse, methods=["POST"]),
        Route("/endless", endless),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(BodyLimit, max_bytes=max_bytes, seconds=seconds, refused=refused.append)
    return app


def code(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return str(error["code"])


@pytest.mark.parametrize("before", [b"", GET], ids=["new connection", "kept connection"])
async def test_a_head_that_takes_too_long(before: bytes) -> None:
    refused: list[str] = []
    async with serving(application(refused), refused, head_seconds=2.0) as port, connection(port) as client:
        if before:
            await client.send(before)
            assert (await client.answer())[1] == b"0"
        await client.send(b"GET / HTTP/1.1\r\nHost: te")
        head, body = await client.answer()
        assert head.startswith("HTTP/1.1 408 ") and code(body) == "head_too_slow"
        assert await client.rest() == b""
    assert refused == ["head_too_slow"]


async def test_a_connection_that_is_never_used_is_closed_without_a_word() -> None:
    refused: list[str] = []
    async with serving(application(refused), refused, head_seconds=0.1) as port, connection(port) as client:
        assert await client.rest() == b""
    assert refused == []


async def test_a_head_without_end() -> None:
    refused: list[str] = []
    async with serving(application(refused), refused) as port, connection(port) as client:
        await client.send(b"GET / HTTP/1.1\r\n" + b"X-Filler: " + b"x" * 200_000)
        head, body = await client.answer()
        assert head.startswith("HTTP/1.1 431 ") and code(body) == "head_too_large"
    assert refused == ["head_too_large"]


async def test_a_head_that_is_too_large_but_complete() -> None:
    """Even if it arrives at once, or asks for a WebSocket."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    for more in (b"", b"X-Short: x\r\n" * 2, upgrade):
        refused: list[str] = []
        async with serving(application(refused), refused) as port, connection(port) as client:
            await client.send(
                b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X-Filler: %b\r\n" % (b"x" * 100_000) + more + b"\r\n"
            )
            head, body = await client.answer()
            assert head.startswith("HTTP/1.1 431 ") and code(body) == "head_too_large"
            assert await client.rest() == b""
        assert refused == ["head_too_large"]


async def test_trailers_without_end() -> None:
    refused: list[str] = []
    async with serving(application(refused), refused) as port, connection(port) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        await client.send(b"X-Filler: x\r\n" * 20_000)
        head, body = await client.answer()
        assert head.startswith("HTTP/1.1 431 ") and code(body) == "head_too_large"
    assert refused == ["head_too_large"]


@pytest.mark.parametrize(
    "following", [b"GET / HTTP/1.1\r\n" + b"X-Filler: x\r\n" * 20_000, GET * 5000], ids=["head", "requests"]
)
async def test_what_follows_while_an_answer_is_under_way_is_not_gathered_without_end(following: bytes) -> None:
    """There is no place for another answer in it, so the connection is cut."""
    refused: list[str] = []
    async with serving(application(refused), refused) as port, connection(port) as client:
        await client.send(b"GET /endless HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (await client.head()).startswith("HTTP/1.1 200 ")
        with pytest.raises(ConnectionError):
            await client.send(following)
            while await client.reader.read(1 << 20):
                pass
            raise ConnectionError
    assert refused == ["head_too_large" if following.endswith(b"x\r\n") else "too_many_pipelined"]


async def test_a_few_requests_at_once_are_answered_in_their_order() -> None:
    async with serving(application([]), []) as port, connection(port) as client:
        await client.send(
            b"".join(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % n + b"x" * n for n in range(50))
        )
        assert [(await client.answer())[1] for _ in range(50)] == [b"%d" % n for n in range(50)]


@pytest.mark.parametrize("size", [20_000_000, 0], ids=["whole", "stream"])
async def test_a_client_that_never_reads_its_answer_is_cut_off(size: int) -> None:
    """Whether the answer is written at once or grows; and the application learns of it."""
    refused: list[str] = []
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = PlainTextResponse("x" * size) if size else await endless(Request(scope))
        await response(scope, receive, send)
        left.set()

    with socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with serving(app, refused, stall_seconds=0.5) as port:
            narrow.connect(("127.0.0.1", port))
            narrow.sendall(GET)
            async with asyncio.timeout(SECONDS):
                await left.wait()
                while not refused:
                    await asyncio.sleep(0.01)
            with suppress(ConnectionError):
                while await asyncio.to_thread(narrow.recv, 1 << 20):  # what was on its way
                    pass
    assert refused == ["answer_not_read"]


async def test_what_is_no_http() -> None:
    async with serving(application([]), []) as port, connection(port) as client:
        await client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        head, body = await client.answer()
        assert head.startswith("HTTP/1.1 400 ") and code(body) == "invalid_http"


async def test_one_connection_too_many_is_told_so() -> None:
    refused: list[str] = []
    async with serving(application(refused), refused, connections=1) as port:
        async with connection(port) as first:
            await first.send(GET)
            assert (await first.answer())[1] == b"0"
            for request in (GET, b"GET /v1/realtime HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"):
                async with connection(port) as second:
                    await second.send(request)
                    head, body = await second.answer()
                    assert head.startswith("HTTP/1.1 503 ") and "retry-after: 1" in head.lower()
                    assert code(body) == "too_many_connections" and await second.rest() == b""
            await first.send(GET)  # which is served on
            assert (await first.answer())[1] == b"0"
        async with asyncio.timeout(SECONDS):
            while True:  # the server learns soon that the first is gone
                async with connection(port) as third:
                    await third.send(GET)
                    if (await third.answer())[0].startswith("HTTP/1.1 200 "):
                        break
    assert set(refused) == {"too_many_connections"}


@pytest.mark.parametrize("path", ["/", "/refuse"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_refusal_can_be_read_by_a_client_that_sends_everything_first(path: str, chunked: bool) -> None:
    """Without a lingering close the connection would be reset, and the answer be lost."""
    refused: list[str] = []
    body = b"x" * 2_000_000
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = b"POST %b HTTP/1.1\r\nHost: test\r\nConnection: close\r\n%b\r\n\r\n" % (path.encode(), framing)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    async with serving(application(refused), refused) as port, connection(port) as client:
        await client.send(head + sent)
        answer, text = await client.answer()
        if path == "/" or not chunked:
            assert answer.startswith("HTTP/1.1 413 ")
            assert refused == ["body_too_large"]
        else:
            assert answer.startswith("HTTP/1.1 401 ") and code(text) == "invalid_api_key"
        assert "connection: close" in answer.lower() and await client.rest() == b""


async def test_a_body_that_takes_too_long() -> None:
    refused: list[str] = []
    async with serving(application(refused, seconds=0.2), refused) as port, connection(port) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nslow")
        assert (await client.head()).startswith("HTTP/1.1 408 ")
    assert refused == ["body_too_slow"]


async def test_a_body_within_its_limits_arrives_whole() -> None:
    async with serving(application([]), []) as port, connection(port) as client:
        for _ in range(2):  # on one connection
            await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)
            assert (await client.answer())[1] == b"1000"


def test_connections_send_without_delay() -> None:
    """Or else each small answer on a kept connection would wait for the client's delayed acknowledgement, 40 ms."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


PIECES = (
    *(
        b"GET",
        b"POST",
        b" ",
        b"/",
        b" /%00 ",
        b"HTTP/1.1",
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b":",
        b"\0",
        b"\xff\xfe",
        b"{}",
    ),
    *(b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Host: x", b"0\r\n\r\n"),
    *(b"Transfer-Encoding: chunked", b"ffffffffffffffff\r\n", b"Connection: Upgrade", b"Upgrade: websocket"),
    *(
        b"Sec-WebSocket-Key: x",
        b"Sec-WebSocket-Version: 13",
        b"Expect: 100-continue",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
)
STARTS = (b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")


async def test_garbage_is_answered_or_let_go_and_neighbours_are_served() -> None:
    numbers = random.Random(0)
    async with serving(application([]), []) as port, connection(port) as neighbour:
        for _ in range(500):
            line = b"\r\n" if numbers.random() < 0.7 else b""
            data = numbers.choice(STARTS) + line.join(numbers.choices(PIECES, k=numbers.randrange(12))) + line
            async with connection(port) as client:
                text = b""
                with suppress(ConnectionError):  # that is one way to be let go
                    await client.send(data)
                    client.writer.write_eof()
                    text = await client.rest()
                assert b"HTTP/1.1 5" not in text, (data, text)
        await neighbour.send(GET)
        assert (await neighbour.answer())[1] == b"0"
