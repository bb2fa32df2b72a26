"""The engine's door: while no request for pictures can be taken, they are refused before anybody reads them."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.client import EngineClient, Overloaded
from server.errors import ApiError, error_response, failure, of_framework

PICTURES = frozenset({"/v1/images/generations", "/v1/images/edits"})


class AdmissionGate:
    """ASGI middleware. Under overload most requests end here; to route and parse them would delay those in work."""

    def __init__(self, app: ASGIApp, client: EngineClient) -> None:
        self._app = app
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PICTURES
        refusal = self._client.turn_away() if asks and self._client.ready else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif (error := await _drop_body(scope, receive, refusal)) is not None:
            await error_response(error)(scope, receive, send)


async def _drop_body(scope: Scope, receive: Receive, refusal: Overloaded) -> ApiError | None:
    """Read the body to its end, so that the connection can go on; returns the answer, None if the client has gone."""
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            if not message.get("more_body", False):
                return failure(refusal)
    except HTTPException as error:  # the body is too large or too slow
        return of_framework(scope["method"], scope["path"], error)
