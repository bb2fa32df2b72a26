"""A ceiling for request bodies, held before anything gathers them in memory."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, error_response


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is known to be larger than `max_bytes`.

    A declared length is judged at once; a chunked body is counted while it arrives. (The framework's own limit answers
    declared lengths in plain text.)
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._message = f"the body is larger than {max_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        # The HTTP parser has refused what is no number.
        if int(declared) > self._max_bytes:
            error = ApiError(413, self._message, code="body_too_large")
            await error_response(error)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, counted, send)
