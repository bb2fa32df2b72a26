"""A small application behind uvicorn in the test's own event loop, for what happens below and around routes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from server.connections import ConnectionLimits, guarded

SECONDS = 60.0  # before something counts as hung, on a busy machine


@asynccontextmanager
async def serving(app: ASGIApp, refused: list[str], **limits: Any) -> AsyncIterator[int]:
    """Serve `app` on the loopback interface; gives the port. Limits are ConnectionLimits' fields."""
    chosen = ConnectionLimits(
        **{"connections": 100, "head_seconds": SECONDS, "stall_seconds": SECONDS, "refused": refused.append, **limits}
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http=guarded(chosen), lifespan="off", log_config=None, log_level="critical", timeout_keep_alive=600
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            server.force_exit = True
            await task


class Connection:
    """A client that sends what it is told, byte by byte if need be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), SECONDS)

    async def head(self) -> str:
        """An answer's status line and headers."""
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), SECONDS)).decode()

    async def answer(self) -> tuple[str, bytes]:
        """Status line and headers, and the body that they declare."""
        head = await self.head()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        return head, await asyncio.wait_for(self.reader.readexactly(length), SECONDS)

    async def rest(self) -> bytes:
        """Everything until the server closes the connection."""
        return await asyncio.wait_for(self.reader.read(), SECONDS)


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
