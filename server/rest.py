"""The routes of OpenAI's Images API, and what their OpenAPI description says."""

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.responses import Response

from engine.client import EngineClient
from server.catalogue import describe, not_found
from server.examples import EDITS, GENERATIONS
from server.images import ImageService
from server.schemas import (
    CompletedEvent,
    EditRequest,
    ErrorEvent,
    ErrorResponse,
    ImageRequest,
    ImageResponse,
    Model,
    ModelList,
    PartialImageEvent,
)

_REF = "#/components/schemas/{model}"
# Bodies that the routes read by themselves, and events, which the framework therefore does not see.
_BODIES = (ImageRequest, EditRequest)
_EVENTS = (PartialImageEvent, CompletedEvent, ErrorEvent)
_REQUEST_ID = {"X-Request-Id": {"description": "The client's, or a new one.", "schema": {"type": "string"}}}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_MEANINGS = {
    400: "The body is no JSON or no form, or holds a picture that cannot be used.",
    401: "An API key is needed, and none or a wrong one was sent.",
    403: "The web page that asks is not allowed to.",
    404: "There is no such model.",
    408: "The head or the body took too long to arrive.",
    413: "The body is too large.",
    415: "The body is of another type than it must be.",
    421: "The server does not go by the name that it was called.",
    422: "A field is missing, unknown, of the wrong type or outside its limits.",
    429: "Too much is asked at once.",
    431: "The head is too large.",
    499: "The request was cancelled.",
    500: "A bug; the server's log has the traceback.",
    503: "The model is still being loaded, the server is shutting down, too many connections are open, or the workers "
    "died.",
    504: "The timeout passed before the picture was ready.",
}
# What any request may get, whatever it asks for. (403 is for what has effects: pages may always ask with GET.)
_ALWAYS = (401, 408, 421, 429, 431, 500, 503)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "description": _MEANINGS[status],
            "model": ErrorResponse,
            "headers": _REQUEST_ID | (_RETRY if status in (429, 503) else {}),
        }
        for status in sorted((*_ALWAYS, *statuses))
    }


def _pictures(kind: str) -> dict[int | str, dict[str, Any]]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    events = [{"$ref": _REF.format(model=model.__name__)} for model in _EVENTS]
    event = {
        "type": "object",
        "description": "One event of the stream.",
        "properties": {
            "event": {"enum": [f"{kind}.partial_image", f"{kind}.completed", "error"]},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": {"oneOf": events}},
        },
        "required": ["event", "data"],
    }
    ok = {
        "description": "JSON; with `Accept: image/png` (or jpeg, webp) the bytes of the picture, and headers X-Seed,"
        " X-Steps and Server-Timing; with `stream` server-sent events.",
        "model": ImageResponse,
        "headers": _REQUEST_ID,
        "content": {f"image/{format}": binary for format in ("png", "jpeg", "webp")}
        | {"text/event-stream": {"schema": event}},
    }
    return {200: ok, **_errors(400, 403, 404, 413, 415, 422, 499, 504)}


def _body(media_type: str, schema: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema, "examples": examples}}}}


_FILE = {"type": "string", "format": "binary", "description": "A PNG, JPEG or WebP picture, as a file."}


def install(app: FastAPI, service: ImageService, client: EngineClient) -> None:
    """Add the routes below /v1, and what `app.openapi` says of them."""
    model = describe(client.manifest, int(time.time()))

    @app.post(
        "/v1/images/generations",
        response_model=ImageResponse,
        responses=_pictures("image_generation"),
        openapi_extra=_body("application/json", {"$ref": _REF.format(model="ImageRequest")}, GENERATIONS),
    )
    async def create_images(request: Request) -> Response:
        """Make pictures from a prompt and, if wanted, a control image."""
        return await service.generate(request)

    @app.post(
        "/v1/images/edits",
        response_model=ImageResponse,
        responses=_pictures("image_edit"),
        openapi_extra=_body("multipart/form-data", {"$ref": _REF.format(model="EditRequest")}, EDITS),
    )
    async def edit_images(request: Request) -> Response:
        """Make pictures from a prompt that follow the edges of a picture."""
        return await service.edit(request)

    @app.get("/v1/models", responses=_errors())
    async def list_models() -> ModelList:
        """The served model and its limits."""
        return ModelList(data=[model])

    @app.get("/v1/models/{name:path}", responses=_errors(404))
    async def get_model(name: str) -> Model:
        """One model; there is but the served one."""
        if name != model.id:
            raise not_found(name, client.manifest)
        return model

    _describe(app)


def _describe(app: FastAPI) -> None:
    """Make `app.openapi` tell the whole truth: our own bodies and events, and our errors instead of the framework's."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [
                *((model, "validation") for model in _BODIES),
                *((model, "serialization") for model in _EVENTS),
            ]
            _, definitions = models_json_schema(modes, ref_template=_REF)
            schemas = schema["components"]["schemas"]
            schemas |= definitions["$defs"]
            form = schemas["EditRequest"]
            form["properties"] = {"image": _FILE, **form["properties"]}
            form["required"].append("image")
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for path in schema["paths"].values():
                for operation in path.values():
                    found = operation["responses"]
                    if "HTTPValidationError" in str(found.get("422")):
                        del found["422"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
