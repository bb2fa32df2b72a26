"""Who may open a session, and what is remembered of those that ended."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.websockets import WebSocket

from engine.client import EngineClient
from server.auth import SUBPROTOCOL
from server.metrics import Metrics
from server.realtime.connection import Connection, Service, close
from server.realtime.protocol import CloseCode, SessionLimits, SessionSettings
from server.settings import Settings
from server.threads import BoundedThreads

MOST_REMEMBERED = 10_000
THREADS = 4
IMAGE_SECONDS = 10.0  # for decoding or encoding one image


class Memory:
    """Settings of ended sessions by client id, for some time and at most some number of them."""

    def __init__(
        self, seconds: float, most: int = MOST_REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, SessionSettings]] = OrderedDict()

    def keep(self, client_id: str, settings: SessionSettings) -> None:
        """Remember, and forget the oldest beyond the limits."""
        self._kept.pop(client_id, None)
        self._kept[client_id] = (self._clock(), settings)
        while self._kept and (len(self._kept) > self._most or self._expired(next(iter(self._kept)))):
            self._kept.popitem(last=False)

    def take(self, client_id: str) -> SessionSettings | None:
        """What was kept, if it is not too old; it is forgotten here."""
        expired = client_id in self._kept and self._expired(client_id)
        found = self._kept.pop(client_id, None)
        return None if found is None or expired else found[1]

    def _expired(self, client_id: str) -> bool:
        return self._clock() - self._kept[client_id][0] > self._seconds


class Realtime:
    """`WS /v1/realtime`."""

    def __init__(self, client: EngineClient, settings: Settings, metrics: Metrics) -> None:
        limits = SessionLimits(
            message_bytes=settings.realtime_message_bytes,
            messages_per_second=settings.realtime_messages_per_second,
            idle_seconds=settings.realtime_idle_seconds,
            resume_seconds=settings.realtime_resume_seconds,
        )
        self._service = Service(
            client=client,
            metrics=metrics,
            threads=BoundedThreads("realtime", THREADS, 2 * settings.realtime_sessions, IMAGE_SECONDS),
            limits=limits,
            stall_seconds=settings.realtime_stall_seconds,
            max_control_pixels=settings.max_control_pixels,
        )
        self._most_sessions = settings.realtime_sessions
        self._sessions: dict[str, Connection] = {}  # by client id
        self._memory = Memory(settings.realtime_resume_seconds)
        metrics.realtime_sessions.set_function(lambda: float(len(self._sessions)))

    async def endpoint(self, socket: WebSocket) -> None:
        """One connection, from handshake to end."""
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        wanted = socket.query_params.get("client_id", "")
        if len(self._sessions) >= self._most_sessions and wanted not in self._sessions:
            await close(socket, CloseCode.TOO_MANY_SESSIONS, f"{self._most_sessions} sessions are open already")
            return
        client_id, settings = self._resume(wanted)
        resumed = settings is not None
        if client_id is None:
            client_id = secrets.token_urlsafe(24)
        connection = Connection(
            socket,
            self._service,
            f"ws_{secrets.token_hex(8)}",
            settings or SessionSettings(),
            socket.scope.get("state", {}).get("holder"),
        )
        self._sessions[client_id] = connection
        try:
            await connection.run(client_id, resumed)
        finally:
            # Another connection may have taken the session over.
            if self._sessions.get(client_id) is connection:
                del self._sessions[client_id]
                self._memory.keep(client_id, connection.settings)

    def _resume(self, client_id: str) -> tuple[str | None, SessionSettings | None]:
        """Settings under this id, of a session that ended or still seems to be open; (None, None): none are known."""
        open_session = self._sessions.pop(client_id, None)
        if open_session is not None:
            open_session.end(CloseCode.TAKEN_OVER, "another connection has taken this session over")
            return client_id, open_session.settings
        settings = self._memory.take(client_id)
        return (None, None) if settings is None else (client_id, settings)

    def close(self) -> None:
        """Release the threads."""
        self._service.threads.close()
