"""Bounds of connections, below HTTP's requests: how many are open, how long a head may take, or an answer be unread."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from server.errors import ApiError, error_response
from server.joined import Joined
from server.limits import LINGER, Lingering, has_body

MAX_HEAD_BYTES = 64 * 1024
MOST_PIPELINED = 100  # requests that wait for an answer on one connection; what is read at once may hold thousands


@dataclass(frozen=True)
class ConnectionLimits:
    """At most `connections` at once, of HTTP and WebSocket together; `refused` is told why one was turned away.

    A head may take `head_seconds`; a client that reads nothing of its answer is cut off after `stall_seconds`.
    """

    connections: int
    head_seconds: float
    stall_seconds: float
    refused: Callable[[str], None]


def guarded(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """uvicorn's protocol within these limits, as its configuration wants it."""
    return type("GuardedProtocol", (_Guarded,), {"limits": limits})


class _Guarded(HttpToolsProtocol):
    """A client that sends its head byte by byte, or without end, is answered and let go. So is one too many.

    Where an answer is under way there is no place for another: such a client, or one that does not read, is cut off.
    """

    limits: ConnectionLimits
    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _unread = 0  # bytes, when the stall began
    # Since the end of a head, of a piece of a body or of a message: an unfinished head, that is, or trailers.
    _unfinished = 0
    _refusal: ApiError | None = None
    _answered = False
    _running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = Joined(transport, self.loop)  # type: ignore[assignment]
        # Or else the end of an answer, below the limit, could wait unread without `pause_writing` being called.
        transport.set_write_buffer_limits(high=0)
        # Its request is read all the same: answered unasked, a client would see a reset.
        if len(self.connections) > self.limits.connections:
            message = f"{self.limits.connections} connections are open, the limit"
            self._refuse(ApiError(503, message, code="too_many_connections", headers={"Retry-After": "1"}))
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished > MAX_HEAD_BYTES:
            self._turn_away(_head_too_large())

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._unfinished = 0
        if len(self.pipeline) >= MOST_PIPELINED and not self._answered:
            self.limits.refused("too_many_pipelined")
            self._drop()
        if self._answered:
            return
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        self._stop_stall()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_stall()
        # uvicorn tells the last request alone, which may be waiting for this one's answer.
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        self._stop_timer()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._answer(ApiError(400, "this is not HTTP that can be understood", code="invalid_http"))

    def handle_websocket_upgrade(self) -> None:
        assert isinstance(self.transport, Joined)
        self._stop_stall()
        self.transport = self.transport.whole
        self.transport.set_write_buffer_limits()  # sessions have limits of their own
        super().handle_websocket_upgrade()

    def _should_upgrade(self) -> bool:
        return self._refusal is None and not self._owes() and super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """An offer of another protocol is simply not taken up."""

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expect_reading(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self.limits.stall_seconds, self._look_at_reading)

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _look_at_reading(self) -> None:
        if self.transport.get_write_buffer_size() < self._unread:
            self._expect_reading()
        else:
            self.limits.refused("answer_not_read")
            self._drop()

    def _head_is_late(self) -> None:
        self._timer = None
        if self._unfinished:
            message = f"the request's head took longer than {self.limits.head_seconds:g} s"
            self._turn_away(ApiError(408, message, code="head_too_slow"))
        else:  # a connection opened in advance and not used
            self.transport.close()

    def _turn_away(self, error: ApiError) -> None:
        self.limits.refused(error.code or "")
        self._answer(error)

    def _refuse(self, error: ApiError) -> None:
        """Answer with this, whatever is asked."""
        self._refusal = error
        self.app = self._refused

    async def _refused(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._refusal is not None
        self.limits.refused(self._refusal.code or "")
        response = error_response(self._refusal)
        response.headers["Connection"] = "close"
        connection = Lingering(receive, send) if has_body(scope) else None
        await response(scope, receive, connection.send if connection else send)

    def _answer(self, error: ApiError) -> None:
        """Answer without a request, drop what still comes, and close."""
        if self.transport.is_closing() or self._answered:
            return
        if self._owes():
            self._drop()
            return
        self._answered = True
        self._stop_timer()
        response = error_response(error)
        lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(
            STATUS_LINE[error.status] + b"".join(lines) + b"connection: close\r\n\r\n" + bytes(response.body)
        )
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)

    def _owes(self) -> bool:
        """Whether an answer is under way, or the next one must be another request's."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(self.pipeline) or cycle.response_started or not cycle.more_body

    def _drop(self) -> None:
        """Let the client go without a word."""
        self._answered = True
        self.transport.abort()


def _head_too_large() -> ApiError:
    return ApiError(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes", code="head_too_large")
