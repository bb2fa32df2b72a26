"""Bounds of connections, below HTTP's requests: how many are open, and how long a request's head may take."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import ApiError, error_response
from server.joined import Joined
from server.limits import LINGER, Lingering, has_body

MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class ConnectionLimits:
    """At most `connections` at once, of HTTP and WebSocket together; `refused` is told why one was turned away."""

    connections: int
    head_seconds: float
    refused: Callable[[str], None]


def guarded(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """uvicorn's protocol within these limits, as its configuration wants it."""
    return type("GuardedProtocol", (_Guarded,), {"limits": limits})


class _Guarded(HttpToolsProtocol):
    """A client that sends its head byte by byte, or without end, is answered and let go. So is one too many."""

    limits: ConnectionLimits
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _surplus = False
    _answered = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = Joined(transport, self.loop)  # type: ignore[assignment]
        # Its request is read all the same: answered unasked, a client would see a reset.
        if len(self.connections) > self.limits.connections:
            self._surplus = True
            self.app = self._full
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        if self._timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        # The chunk in which a head ends may bring a part of its body, so only unfinished heads are judged.
        if self._timer is not None and self._head_bytes > MAX_HEAD_BYTES:
            message = f"the request's head is larger than {MAX_HEAD_BYTES} bytes"
            self._turn_away(431, message, "head_too_large")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self._stop_timer()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._answer(ApiError(400, "this is not HTTP that can be understood", code="invalid_http"))

    def handle_websocket_upgrade(self) -> None:
        assert isinstance(self.transport, Joined)
        self.transport = self.transport.whole
        super().handle_websocket_upgrade()

    def _should_upgrade(self) -> bool:
        return not self._surplus and super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """An offer of another protocol is simply not taken up."""

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        self._timer = None
        if self._head_bytes:
            message = f"the request's head took longer than {self.limits.head_seconds:g} s"
            self._turn_away(408, message, "head_too_slow")
        else:  # a connection opened in advance and not used
            self.transport.close()

    def _turn_away(self, status: int, message: str, code: str) -> None:
        self._stop_timer()
        self.limits.refused(code)
        self._answer(ApiError(status, message, code=code))

    def _answer(self, error: ApiError) -> None:
        """Answer without a request, drop what still comes, and close."""
        if self.transport.is_closing() or self._answered:
            return
        self._answered = True
        response = error_response(error)
        lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(
            STATUS_LINE[error.status] + b"".join(lines) + b"connection: close\r\n\r\n" + bytes(response.body)
        )
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)

    async def _full(self, scope: Scope, receive: Receive, send: Send) -> Any:
        self.limits.refused("too_many_connections")
        message = f"{self.limits.connections} connections are open, the limit"
        headers = {"Retry-After": "1", "Connection": "close"}
        error = ApiError(503, message, code="too_many_connections", headers=headers)
        connection = Lingering(receive, send) if has_body(scope) else None
        await error_response(error)(scope, receive, connection.send if connection else send)
