"""What is written at once is sent at once; nothing is lost, reordered or kept back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from server.joined import LARGE, Joined
from tests.server.edge import connection, serving


class Recorder:
    """Stands for a transport and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("close")

    def write_eof(self) -> None:
        self.told.append("eof")

    def is_closing(self) -> bool:
        return "close" in self.told


async def test_what_is_written_and_when() -> None:
    transport = Recorder()
    joined = Joined(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
    joined.write(b"head ")
    assert transport.told == []
    joined.write(b"body")
    assert transport.told == [b"head body"]
    joined.write(b"alone")
    await asyncio.sleep(0)
    assert transport.told[1:] == [b"alone"]
    joined.write(b"")
    joined.write(b"head")
    joined.write(b"x" * (LARGE + 1))
    joined.write(b"y" * (LARGE + 1))
    assert transport.told[2:] == [b"head", b"x" * (LARGE + 1), b"y" * (LARGE + 1)]
    joined.write(b"last")
    assert not joined.is_closing()
    joined.write_eof()
    joined.write(b"late")
    joined.close()
    assert transport.told[5:] == [b"last", "eof", b"late", "close"] and joined.is_closing()
    await asyncio.sleep(0)
    assert transport.told[9:] == []


async def test_answers_of_all_kinds_arrive_whole() -> None:
    gate = asyncio.Event()

    async def body(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x" * int(request.path_params["length"]))

    async def parts() -> AsyncIterator[bytes]:
        for index in range(5):
            yield str(index).encode()
            if index == 2:
                await gate.wait()

    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(parts())

    app = Starlette(routes=[Route("/stream", stream), Route("/{length:int}", body)])
    async with serving(app, []) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for length in (0, 1, LARGE - 1, LARGE, LARGE + 1, 10 * LARGE):
            assert len((await client.get(f"/{length}")).content) == length
            assert (await client.head(f"/{length}")).headers["content-length"] == str(length)
        async with connection(port) as waiting:
            await waiting.send(b"GET /stream HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            await waiting.head()
            # What was made before the pause is here, though more is to come.
            start = await asyncio.wait_for(waiting.reader.readuntil(b"1\r\n2\r\n"), 60)
            assert start == b"1\r\n0\r\n1\r\n1\r\n1\r\n2\r\n"
            gate.set()
            assert (await waiting.rest()) == b"1\r\n3\r\n1\r\n4\r\n0\r\n\r\n"
