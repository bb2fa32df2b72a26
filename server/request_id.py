"""Every answer carries an X-Request-Id: the client's, if it sent a sensible one, else a new one."""

import re
import secrets

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
# It goes into logs and headers, so neither control characters nor long texts.
_SENSIBLE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestId:
    """ASGI middleware: `request.state.request_id`, and the header of the answer. Must be the outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(HEADER.encode(), b"")
        request_id = sent.decode() if _SENSIBLE.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, labelled)
