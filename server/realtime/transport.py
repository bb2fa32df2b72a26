"""uvicorn's WebSocket protocol, with things that its settings cannot express."""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from server.realtime.protocol import CloseCode

# Seconds from a session's end until its connection is cut, even if the client has not read what was written.
LINGER = 10.0


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Says 1001 when the server stops, and lets no client that never reads hold its connection open for ever."""

    def shutdown(self) -> None:
        """Close with "going away": uvicorn says 1012, which is for a server that is known to come back."""
        if self.handshake_complete and not self.close_sent:
            self.stop_keepalive()
            self.conn.send_close(CloseCode.GOING_AWAY, "the server is shutting down")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.GOING_AWAY})
        super().shutdown()

    async def send(self, message: Any) -> None:
        """Send; a refusal in words completes the handshake too, which uvicorn would report as an error."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The session has ended; closing waits for the client to read the rest, but not longer than this."""
        super().on_task_complete(task)
        self.loop.call_later(LINGER, self.transport.abort)
