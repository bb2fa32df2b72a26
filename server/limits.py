"""Bounds of request bodies, held before anything gathers them in memory; and answers that a busy sender can read."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, error_response

# How long what a client still sends is read and dropped after its answer. Closing at once would reset the connection,
# and the reset would destroy the answer before the client, busy sending, has read it.
LINGER = 5.0


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is known to exceed `max_bytes`, 408 if it takes longer than `seconds`.

    A declared length is judged at once; a chunked body is counted while it arrives. (The framework's own limit answers
    declared lengths in plain text.)
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float, refused: Callable[[str], None]) -> None:
        self._app = app
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.refused = refused
        self.message = f"the body is larger than {max_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not has_body(scope):
            await self._app(scope, receive, send)
            return
        declared = int(dict(scope["headers"]).get(b"content-length", b"0"))
        body = _Body(receive, send, self)
        if declared > self.max_bytes:
            self.refused("body_too_large")
            error = ApiError(413, self.message, code="body_too_large")
            await error_response(error)(scope, body.receive, body.send)
            return
        await self._app(scope, body.receive, body.send)


def has_body(scope: Scope) -> bool:
    """Whether a request announces a body. The HTTP parser has refused lengths that are no numbers."""
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > 0


class Lingering:
    """Wraps `receive` and `send`: an answer that comes before the body's end closes the connection, but not too soon.

    See `LINGER`. Everything that reads or answers the request has to use these two.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.complete = False

    async def receive(self) -> Message:
        """The next part of the body; once it is complete, only the client's leaving is left to wait for."""
        message = await self._receive()
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Answer; the end of an early answer waits until the rest of the body has been dropped."""
        if self.complete or message.get("more_body", False):
            await self._send(message)
        elif message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    while not self.complete:
                        await Lingering.receive(self)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body(Lingering):
    """One request's body while it arrives, within its limits."""

    def __init__(self, receive: Receive, send: Send, limit: BodyLimit) -> None:
        super().__init__(receive, send)
        self._limit = limit
        self._deadline = asyncio.get_running_loop().time() + limit.seconds
        self._seen = 0

    async def receive(self) -> Message:
        if self.complete:
            return await super().receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await super().receive()
        except TimeoutError:
            self._limit.refused("body_too_slow")
            raise HTTPException(408, f"the body took longer than {self._limit.seconds:g} s") from None
        self._seen += len(message.get("body", b""))
        if self._seen > self._limit.max_bytes:
            self._limit.refused("body_too_large")
            raise HTTPException(413, self._limit.message)
        return message
