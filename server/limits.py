"""A ceiling for request bodies, held before anything reads them into memory."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, error_response


class BodyLimit:
    """ASGI middleware: answers 413 as soon as a body is known to be larger than `max_bytes`.

    A declared length is judged at once; a chunked body is counted while it arrives.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if int(declared) > self.max_bytes:
            await error_response(self._too_large())(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.max_bytes} bytes", code="body_too_large")
