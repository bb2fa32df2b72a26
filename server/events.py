"""Server-sent events, as OpenAI's clients read them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.gather import ClientGone, while_connected

MEDIA_TYPE = "text/event-stream"


def frame(event: BaseModel, kind: str) -> bytes:
    """One event on the wire."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), event.model_dump_json().encode())


class EventStream(Response):
    """An answer that grows: `frames` are sent as they come, and closed when the client hangs up."""

    media_type = MEDIA_TYPE

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def pump() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in self._frames:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async with aclosing(self._frames):
            with suppress(ClientGone):  # there is nobody to tell
                await while_connected(receive, pump())
