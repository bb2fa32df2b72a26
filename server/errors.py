"""Errors in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from engine.request import InvalidRequest

log = logging.getLogger("pixart")

# Where the engine's fields stand in a request's body.
_PARAMS = {"control": "control.image", "control_kind": "control.type", "strength": "control.strength"}
_LONGEST = 400


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


def error_response(error: ApiError) -> JSONResponse:
    """The response that says so."""
    kind = "invalid_request_error"
    if error.status == 429:
        kind = "rate_limit_error"
    elif error.status >= 500:
        kind = "server_error"
    body = {"message": _plain(error.message), "type": kind, "param": _plain(error.param), "code": error.code}
    return JSONResponse({"error": body}, error.status, error.headers)


def _plain(text: str | None) -> str | None:
    """Text that may quote a client's words: of bounded length, and without surrogates, which UTF-8 cannot carry."""
    if text is None:
        return None
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")


def out_of_range(error: InvalidRequest) -> ApiError:
    """The engine's refusal, told with the API's field names."""
    param = _PARAMS.get(error.field, error.field)
    message = f"{param} {error.message}; allowed: {error.limit}"
    return ApiError(422, message, param=param, code="out_of_range")


def malformed(error: RequestValidationError) -> ApiError:
    """Name the first field that is wrong, and how."""
    first = error.errors()[0]
    kind = first["type"]
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    param = ".".join(str(part) for part in first["loc"] if part != "body")
    if not param:
        return ApiError(400, "the body must be a JSON object, sent as application/json", code="invalid_json")
    if kind == "extra_forbidden":
        return ApiError(422, f"{param} is not a known parameter", param=param, code="unknown_parameter")
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

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(malformed(error))

    @app.exception_handler(HTTPException)
    async def _framework(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(ApiError(error.status_code, message, headers=error.headers))

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(ApiError(500, "internal error; the server's log has the details", code="internal_error"))
