"""The writing half of a session: bounded, whatever the client reads."""

import asyncio
from collections import deque

from starlette.websockets import WebSocket

from server.metrics import Metrics
from server.realtime.protocol import CloseCode, ImageCompleted, ImagePreview, ServerMessage

# Small messages that may wait. Inputs are limited in rate and stalls in time, so only a client that never reads
# gets here.
MOST_MESSAGES = 1000


class Ended(Exception):
    """The session is over. Without a code: the client has gone."""

    def __init__(self, code: CloseCode | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Sender:
    """Writes messages in their order, and pictures when the wire is free: at most one, and one preview, in memory."""

    def __init__(self, socket: WebSocket, stall_seconds: float, metrics: Metrics) -> None:
        self._socket = socket
        self._stall_seconds = stall_seconds
        self._frames = metrics.realtime_frames.labels("out")
        self._previews_dropped = metrics.realtime_dropped.labels("preview")
        self._messages: deque[ServerMessage] = deque()
        self._preview: tuple[ImagePreview, bytes] | None = None
        self._picture: tuple[ImageCompleted, bytes, asyncio.Event] | None = None
        self._wake = asyncio.Event()

    def say(self, message: ServerMessage) -> None:
        """Send a small message soon.

        Raises:
            Ended: the client does not read.
        """
        if len(self._messages) >= MOST_MESSAGES:
            raise Ended(CloseCode.TIMEOUT, "answers are not read")
        self._messages.append(message)
        self._wake.set()

    def show_preview(self, header: ImagePreview, data: bytes) -> None:
        """Send an unfinished picture, unless a later one comes before the wire is free."""
        self.forget_preview()
        self._preview = (header, data)
        self._wake.set()

    def forget_preview(self) -> None:
        """Do not send the preview that may wait."""
        if self._preview is not None:
            self._preview = None
            self._previews_dropped.inc()

    async def show(self, header: ImageCompleted, data: bytes) -> None:
        """Send a picture; returns when the connection has taken it, so that no next one is made for a slow reader."""
        self.forget_preview()
        written = asyncio.Event()
        self._picture = (header, data, written)
        self._wake.set()
        await written.wait()

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            Ended: the client has gone, or has read nothing for too long.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._messages:
                await self._write(self._messages.popleft())
            if self._preview is not None:
                preview, self._preview = self._preview, None
                await self._write(*preview)
            elif self._picture is not None:
                (header, data, written), self._picture = self._picture, None
                await self._write(header, data)
                written.set()
            if self._messages or self._preview or self._picture:
                self._wake.set()

    async def _write(self, header: ServerMessage, data: bytes | None = None) -> None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._socket.send_text(header.model_dump_json())
                if data is not None:
                    await self._socket.send_bytes(data)
            self._frames.inc(1 if data is None else 2)
        except TimeoutError:
            raise Ended(CloseCode.TIMEOUT, f"nothing was read for {self._stall_seconds:g} s") from None
        except Exception as error:  # the server raises several kinds, depending on how the connection was lost
            raise Ended from error
