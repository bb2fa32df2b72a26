"""Which web pages may use the server: browsers let any page send requests anywhere, and only say which page it was."""

import ipaddress
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, error_response, quote

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def may_use(origin: str | None, host: str, origins: Collection[str]) -> bool:
    """Whether a page of this origin may use the server that it calls `host`.

    No origin: no browser. The server's own pages always may, others if they are listed; "*" lists all.
    """
    if origin is None or "*" in origins or origin in origins:
        return True
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def known_hosts(address: str, allowed: tuple[str, ...]) -> frozenset[str] | None:
    """The names by which clients may call the server; None: any.

    A server on the loopback interface that was told nothing else answers to its address and loopback names alone.
    Otherwise a page anywhere could give its own name that address (DNS rebinding) and then count as the server's own.
    """
    if "*" in allowed:
        return None
    if not allowed and not _is_loopback(address):
        return None
    return frozenset(name.lower() for name in (*allowed, *_LOOPBACK_NAMES, *_own_name(address)))


def _own_name(address: str) -> tuple[str, ...]:
    """What a URL calls the address that the server listens on; nothing, if that stands for all of a machine's."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return (address,)
    if ip.is_unspecified:
        return ()
    return (f"[{ip}]" if ip.version == 6 else str(ip),)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


class OriginGate:
    """ASGI middleware: 421 for a Host that the server does not go by; 403 for pages that may not use it.

    CORS keeps other pages from reading answers, but not from asking: without this, any page could have pictures made,
    or open a WebSocket. Mere GET requests change nothing and pass.
    """

    def __init__(
        self, app: ASGIApp, origins: tuple[str, ...], hosts: frozenset[str] | None, refused: Callable[[str], None]
    ) -> None:
        self._app = app
        self._origins = origins
        self._hosts = hosts
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        sent = headers.get(b"origin")
        origin = None if sent is None else sent.decode("latin-1")
        error = None
        if self._hosts is not None and _name(host) not in self._hosts:
            message = f"this server does not go by the name {quote(host)!r}; the setting allowed_hosts can add it"
            error = ApiError(421, message, code="unknown_host")
        elif scope.get("method") not in _READING and not may_use(origin, host, self._origins):
            error = _not_allowed(str(origin))
        if error is None:
            await self._app(scope, receive, send)
            return
        self._refused(error.code or "")
        await error_response(error)(scope, receive, send)


class Cors(CORSMiddleware):
    """ASGI middleware: lets browsers give answers to the listed pages, and refuses other preflights as all is refused.

    Listed pages may send any header: clients have many of their own (OpenAI's: x-stainless-…).
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], refused: Callable[[str], None]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=("*",),
            max_age=600,
        )
        self._refused = refused

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a preflight."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        origin, method = request_headers["origin"], request_headers["access-control-request-method"]
        if self.is_allowed_origin(origin):
            error = ApiError(400, f"pages of other origins may not ask for {quote(method)!r}", code="bad_request")
        else:
            error = _not_allowed(origin)
            self._refused("origin_not_allowed")
        answer = error_response(error)
        for name in ("access-control-allow-origin", "vary"):
            if name in response.headers:
                answer.headers[name] = response.headers[name]
        return answer


def _not_allowed(origin: str) -> ApiError:
    message = f"pages of {quote(origin)!r} may not use this server; the setting allowed_origins can admit them"
    return ApiError(403, message, code="origin_not_allowed")


def _name(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
