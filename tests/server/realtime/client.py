"""A client of `WS /v1/realtime` that checks the framing: a picture's header is followed by its bytes."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect

SECONDS = 120.0  # before the server counts as hung, on a busy machine

PICTURES = ("image.preview", "image.completed")


@dataclass
class Session:
    """One open session."""

    socket: ClientConnection
    created: dict[str, Any] = field(default_factory=dict)

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def update(self, **settings: Any) -> dict[str, Any]:
        """Change settings; all of them, as the server has them then."""
        await self.send("session.update", session=settings)
        return (await self.until("session.updated"))["session"]

    async def receive(self) -> dict[str, Any]:
        """The next message; a picture's bytes come under `data`."""
        text = await self.socket.recv()
        assert isinstance(text, str), "a picture without a header"
        message: dict[str, Any] = json.loads(text)
        if message["type"] in PICTURES:
            data = await self.socket.recv()
            assert isinstance(data, bytes) and len(data) == message["bytes"]
            message["data"] = data
        return message

    async def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of this type with these fields; others are skipped."""
        while True:
            message = await self.receive()
            if message["type"] == kind and all(message[name] == value for name, value in fields.items()):
                return message

    async def outcomes(self, last: int) -> dict[int, str]:
        """What became of the inputs 1 to `last`: a message's type, or why it was dropped."""
        found: dict[int, str] = {}
        while len(found) < last:
            message = await self.receive()
            if message["type"] == "dropped":
                news = {number: message["reason"] for number in message["inputs"]}
            elif message["type"] in ("image.completed", "error"):
                news = {message["input"]: message["type"]}
            else:
                continue
            assert not set(news) & set(found), f"{news} after {found}"
            found |= news
        return found


@asynccontextmanager
async def session(url: str, client_id: str | None = None, **options: Any) -> AsyncIterator[Session]:
    """Connect to a server, given its HTTP address."""
    address = url.replace("http", "ws", 1) + "/v1/realtime" + (f"?client_id={client_id}" if client_id else "")
    options = {"open_timeout": SECONDS, "ping_timeout": SECONDS, "proxy": None} | options
    async with connect(address, **options) as socket:
        opened = Session(socket)
        opened.created = await opened.receive()
        assert opened.created["type"] == "session.created"
        yield opened


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture.convert("RGB"))


def drawing(rng: np.random.Generator, side: int = 64, kind: str = "PNG") -> bytes:
    """White strokes on black, as a page would send them."""
    canvas = np.zeros((side, side), dtype=np.uint8)
    for _ in range(3):
        row, column = rng.integers(0, side, 2)
        canvas[row, :] = canvas[:, column] = 255
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, kind)
    return buffer.getvalue()
