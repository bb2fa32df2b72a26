"""Errors in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from engine.client import Cancelled, DeadlineMissed, NotReady, Overloaded, WorkerFailed
from engine.request import InvalidRequest
from server.gather import ClientGone
from server.schemas import ErrorDetail

# Where the engine's fields stand in a request's body.
_PARAMS = {"control": "control.image", "control_kind": "control.type", "strength": "control.strength"}
# Of the framework's own errors, by status.
CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 408: "body_too_slow", 413: "body_too_large"}
_LONGEST_QUOTE = 100


class ApiError(Exception):
    """An answer that is not a picture. `param` names the field to mend, where there is one."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers


def body_of(error: ApiError) -> ErrorDetail:
    """What the client reads."""
    kind: Literal["invalid_request_error", "rate_limit_error", "server_error"] = "invalid_request_error"
    if error.status == 429:
        kind = "rate_limit_error"
    elif error.status >= 500:
        kind = "server_error"
    return ErrorDetail(message=error.message, type=kind, param=error.param, code=error.code)


def error_response(error: ApiError) -> JSONResponse:
    """The response that says so."""
    return JSONResponse({"error": body_of(error).model_dump()}, error.status, error.headers)


def quote(text: str) -> str:
    """A client's own words, at bounded length."""
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…"


def out_of_range(error: InvalidRequest, flat: bool = False) -> ApiError:
    """The engine's refusal, told with the API's field names; `flat`: with a form's, where nothing is nested."""
    param = error.field if flat else _PARAMS.get(error.field, error.field)
    message = f"{param} {quote(error.message)}; allowed: {error.limit}"
    return ApiError(422, message, param=param, code="out_of_range")


# What the engine and the connection may raise while pictures are made.
FAILURES = (NotReady, Overloaded, DeadlineMissed, WorkerFailed, Cancelled, ClientGone)


def failure(error: Exception, timeout: float | None = None) -> ApiError:
    """Why there is no picture, for a request that was valid; anything but FAILURES is a bug.

    `timeout` is the request's, in seconds.
    """
    match error:
        case NotReady():
            return ApiError(503, "the model is still being loaded", code="not_ready", headers={"Retry-After": "1"})
        case Overloaded():
            headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            status = 503 if error.reason == "draining" else 429
            if error.reason != "deadline" or timeout is None:
                return ApiError(status, str(error), code=error.reason, headers=headers)
            # What comes too late now by `retry_after` is in time with so much more; waiting alone may never help.
            enough = math.ceil(10 * (timeout + error.retry_after)) / 10
            message = (
                f"the picture cannot be ready within the timeout of {timeout:g} s; allow about {enough:g} s, "
                f"or try again in {error.retry_after:.1f} s"
            )
            return ApiError(status, message, param="timeout", code=error.reason, headers=headers)
        case DeadlineMissed():
            return ApiError(
                504, "the timeout passed before the picture was ready", param="timeout", code="deadline_missed"
            )
        case WorkerFailed():
            return ApiError(503, "the workers that ran this request died", code="worker_failed")
        case Cancelled():
            return ApiError(499, "the request was cancelled", code="cancelled")
        case ClientGone():
            return ApiError(499, "the client hung up", code="client_gone")
    return ApiError(500, "internal error; the server's log has the details", code="internal_error")


def of_framework(method: str, path: str, error: HTTPException) -> ApiError:
    """What the framework, or a limit within it, has against a request."""
    message = f"{method} {quote(path)}: {error.detail}"
    return ApiError(error.status_code, message, code=CODES.get(error.status_code), headers=error.headers)


def malformed(errors: Sequence[Any]) -> ApiError:
    """Name the first field that is wrong, and how; `errors` are pydantic's."""
    first = errors[0]
    kind = first["type"]
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    param = quote(".".join(str(part) for part in first["loc"] if part != "body"))
    if not param:
        message = f"the body must be a JSON object ({first['msg']})"
        return ApiError(400, message, code="invalid_json")
    if kind == "extra_forbidden":
        return ApiError(422, f"{param} is not a known parameter", param=param, code="unknown_parameter")
    if param == "response_format":
        message = "response_format: pictures come in the answer, as b64_json; there is no url"
        return ApiError(422, message, param=param, code="invalid_value")
    if kind == "missing":
        return ApiError(422, f"{param} is required", param=param, code="missing_parameter")
    return ApiError(422, f"{param}: {first['msg']}", param=param, code="invalid_value")


def install(app: FastAPI) -> None:
    """Make every error of `app`, the framework's own included, take this shape."""

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(InvalidRequest)
    async def _engine(request: Request, error: InvalidRequest) -> JSONResponse:
        return error_response(out_of_range(error))

    async def _engine_failure(request: Request, error: Exception) -> JSONResponse:
        return error_response(failure(error))

    for kind in FAILURES:
        app.add_exception_handler(kind, _engine_failure)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(malformed(error.errors()))

    @app.exception_handler(HTTPException)
    async def _framework(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(of_framework(request.method, request.url.path, error))

    async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
        # The framework's own answer to a WebSocket is an empty 403.
        if scope["type"] == "websocket":
            error = of_framework("WEBSOCKET", scope["path"], HTTPException(404))
            await error_response(error)(scope, receive, send)
        else:
            await app.router.not_found(scope, receive, send)

    app.router.default = _no_route

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        # The framework raises the error again, and the HTTP server logs it.
        return error_response(failure(error))
