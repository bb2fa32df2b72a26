"""Who may use the server, and how much: API keys as ASGI middleware, for HTTP and WebSockets alike."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, error_response
from server.keys import KEY, Key, KeysError, read

log = logging.getLogger(__name__)

# In Sec-WebSocket-Protocol: what a browser offers instead of an Authorization header, which it cannot send.
SUBPROTOCOL = "pixart"
KEY_SUBPROTOCOL = "pixart-key."

_RELOAD = 1.0  # seconds between looks at the file


class Holder:
    """What one key is doing now: a token bucket that holds one second's requests (at least one), and a count.

    The key may get other limits meanwhile; `refresh` has the file read again if it changed.
    """

    def __init__(
        self, key: Key, refresh: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.key = key
        self.running = 0
        self.withdrawn = False
        self._refresh = refresh
        self._clock = clock
        self._tokens = max(1.0, key.rate)
        self._filled = clock()

    def take(self) -> None:
        """Count one request against the rate.

        Raises:
            ApiError: 429, with the time after which it will be taken.
        """
        if wait := self.wait():
            message = f"more than {self.key.rate:g} requests a second with this key"
            raise _too_many(message, wait, "rate_limit_exceeded")
        if self.key.rate:
            self._tokens -= 1.0

    def wait(self) -> float:
        """Seconds until `take` would count another request; 0: it would now."""
        rate, now = self.key.rate, self._clock()
        self._tokens = min(max(1.0, rate), self._tokens + (now - self._filled) * rate)
        self._filled = now
        return max(0.0, 1.0 - self._tokens) / rate if rate else 0.0

    def enter(self) -> None:
        """Begin a request.

        Raises:
            ApiError: 429, too many are running.
        """
        limit = self.key.concurrency
        if limit and self.running >= limit:
            raise _too_many(f"{limit} requests run with this key, its limit", 1.0, "concurrency_limit_exceeded")
        self.running += 1

    def leave(self) -> None:
        """End a request."""
        self.running -= 1

    async def until_withdrawn(self) -> None:
        """Return soon after the key was withdrawn. Looks by itself: there may be no other requests that would."""
        while not self.withdrawn:
            await asyncio.sleep(_RELOAD)
            await self._refresh()


def _too_many(message: str, wait: float, code: str) -> ApiError:
    return ApiError(429, message, code=code, headers={"Retry-After": str(max(1, math.ceil(wait)))})


class KeyRing:
    """The file's keys, read again soon after it changed, so that a key can be added or withdrawn while serving.

    Raises:
        KeysError: the file cannot be used at the start. Later, the keys that were read last stay.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked = time.monotonic()
        self._state = self._stat()
        self._holders = {key.id: Holder(key, self.refresh) for key in read(path)}

    def find(self, key: str) -> Holder | None:
        """Whose key this is."""
        match = KEY.fullmatch(key)
        holder = self._holders.get(match[1]) if match else None
        return holder if holder is not None and holder.key.matches(key) else None

    async def refresh(self) -> None:
        """Read the file again if it changed; looks at most once a second, and never blocks the event loop."""
        now = time.monotonic()
        if now - self._looked < _RELOAD:
            return
        self._looked = now
        state = await asyncio.to_thread(self._stat)
        if state == self._state:
            return
        self._state = state
        try:
            keys = await asyncio.to_thread(read, self._path)
        except KeysError as error:
            log.error("%s; the keys that were read last stay valid", error)
            return
        holders = {key.id: Holder(key, self.refresh) for key in keys}
        for holder in self._holders.values():
            key = holder.key
            new = holders.get(key.id)
            if new is None or (new.key.salt, new.key.hash) != (key.salt, key.hash):
                holder.withdrawn = True
            else:  # what runs with the key, and its tokens, outlast a change of its limits
                holder.key = new.key
                holders[key.id] = holder
        self._holders = holders
        log.info("read %d keys from %s", len(keys), self._path)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class KeyGate:
    """ASGI middleware: HTTP requests and WebSockets need a key, but for public paths and browsers' preflights.

    The key stands in `Authorization: Bearer KEY`. A page's script cannot set that on a WebSocket; it offers the
    subprotocols `pixart` and `pixart-key.KEY` (not a query parameter, which would end up in logs and histories).
    `scope["state"]["holder"]` is the key's `Holder`, whose `take` counts what a WebSocket session asks for.
    """

    def __init__(
        self,
        app: ASGIApp,
        ring: KeyRing,
        public_paths: tuple[str, ...],
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._app = app
        self._ring = ring
        self._paths = frozenset(public_paths)
        self._folders = tuple(path for path in public_paths if path.endswith("/") and path != "/")
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_public(scope):
            await self._app(scope, receive, send)
            return
        await self._ring.refresh()
        holder = self._ring.find(_presented(scope))
        if holder is None:
            self._refused("unauthenticated")
            await error_response(_unauthenticated(scope))(scope, receive, send)
            return
        try:
            holder.take()
            holder.enter()
        except ApiError as error:
            self._refused(error.code or "")
            await error_response(error)(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["holder"] = holder
            await self._app(_without_key(scope), receive, send)
        finally:
            holder.leave()

    def _is_public(self, scope: Scope) -> bool:
        path = scope["path"]
        return path in self._paths or path.startswith(self._folders) or scope.get("method") == "OPTIONS"


def _presented(scope: Scope) -> str:
    headers: Mapping[bytes, bytes] = dict(scope["headers"])
    kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return key.strip()
    offered: list[str] = scope.get("subprotocols", [])
    return next((name.removeprefix(KEY_SUBPROTOCOL) for name in offered if name.startswith(KEY_SUBPROTOCOL)), "")


def _unauthenticated(scope: Scope) -> ApiError:
    words = "the API key is not valid" if _presented(scope) else "an API key is needed: Authorization: Bearer KEY"
    return ApiError(401, words, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _without_key(scope: Scope) -> Scope:
    """The application need not see the key, and must not choose it as the connection's subprotocol."""
    if scope["type"] == "websocket":
        kept = [name for name in scope.get("subprotocols", []) if not name.startswith(KEY_SUBPROTOCOL)]
        return {**scope, "subprotocols": kept}
    return scope
