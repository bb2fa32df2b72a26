"""What travels over `WS /v1/realtime`: the JSON text frames, and the codes a session may end with.

Only types are judged here; the limits of a picture are the engine's. docs/realtime.md explains the protocol, and
docs/asyncapi.yaml describes it to machines.
"""

from enum import IntEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from engine.noise import MAX_SEED
from engine.request import MAX_PROMPT_CHARACTERS, MAX_STRENGTH
from engine.sampler import MAX_STEPS
from server.errors import ApiError, quote
from server.pictures import Format
from server.schemas import ControlType, ErrorDetail

MOST_CHARACTERS = 32 * 1024  # of a text message; it is parsed on the event loop
LARGEST_ID = 2**53  # what JavaScript's numbers hold exactly

DropReason = Literal["superseded", "interrupted", "cancelled"]


class CloseCode(IntEnum):
    """Why the server ends a session (a too large message: 1009, a broken frame: 1002 or 1007)."""

    GOING_AWAY = 1001
    INTERNAL_ERROR = 1011
    INVALID_MESSAGES = 4400
    KEY_WITHDRAWN = 4401
    TIMEOUT = 4408
    TAKEN_OVER = 4409
    TOO_MANY_SESSIONS = 4429


class _Model(BaseModel):
    # What the server sends, it sends with the fields that have defaults.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, json_schema_serialization_defaults_required=True
    )


def _documented(low: float, high: float) -> dict[str, Any]:
    return {"minimum": low, "maximum": high}


class ControlSettings(_Model):
    """How a session's control images are followed."""

    type: ControlType = Field(
        default="edges",
        description="`edges`: control images are line drawings. `picture` or `hed`: edges are to be found in them. "
        "`none`: they are not looked at.",
    )
    strength: Annotated[float, Field(json_schema_extra=_documented(0, MAX_STRENGTH))] = 1.0


class SessionSettings(_Model):
    """What a session's pictures are made with; an update names only what changes."""

    prompt: Annotated[str, Field(json_schema_extra={"maxLength": MAX_PROMPT_CHARACTERS})] = ""
    seed: int | None = Field(
        default=None, json_schema_extra=_documented(0, MAX_SEED), description="null: a new one for every picture."
    )
    steps: int | None = Field(
        default=None, json_schema_extra=_documented(1, MAX_STEPS), description="null: the model's default."
    )
    min_steps: int | None = Field(
        default=None,
        json_schema_extra=_documented(1, MAX_STEPS),
        description="How few steps will do when the server is busy; null: as many as `steps`.",
    )
    size: str = Field(default="auto", description="`auto`, or WIDTHxHEIGHT as GET /v1/models lists them.")
    control: ControlSettings = ControlSettings()
    output_format: Format = "jpeg"
    output_compression: int = Field(default=90, ge=0, le=100, description="Quality of JPEG and WebP.")
    previews: int = Field(
        default=0, ge=0, le=MAX_STEPS - 1, description="Unfinished pictures to show before each, if it has the steps."
    )
    interrupt: bool = Field(default=False, description="Whether newer input stops the picture that is being made.")

    def updated(self, patch: Self) -> Self:
        """These settings, with those that `patch` was given explicitly."""
        changes = {name: getattr(patch, name) for name in patch.model_fields_set}
        if "control" in changes:
            given = {name: getattr(patch.control, name) for name in patch.control.model_fields_set}
            changes["control"] = self.control.model_copy(update=given)
        return self.model_copy(update=changes)


class SessionUpdate(_Model):
    """Change settings; answered with `session.updated`. Makes no picture."""

    type: Literal["session.update"]
    session: SessionSettings


class Generate(_Model):
    """An input: make a picture with the settings and the control image as they are now."""

    type: Literal["generate"]


class ControlClear(_Model):
    """Forget the control image; later pictures follow the prompt alone."""

    type: Literal["control.clear"]


class Cancel(_Model):
    """Give up the running and the waiting picture."""

    type: Literal["cancel"]


class Ping(_Model):
    """Answered with `pong` and the same id; also keeps an idle session open."""

    type: Literal["ping"]
    id: int = Field(default=0, ge=-LARGEST_ID, le=LARGEST_ID)


ClientMessage = SessionUpdate | Generate | ControlClear | Cancel | Ping
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])


class SessionLimits(_Model):
    """What the server accepts from this session."""

    message_bytes: int
    messages_per_second: int
    idle_seconds: int
    resume_seconds: int


class SessionCreated(_Model):
    """The first message. `client_id` is a secret with which a later connection gets these settings back."""

    type: Literal["session.created"] = "session.created"
    client_id: str
    resumed: bool
    model: str
    session: SessionSettings
    limits: SessionLimits


class SessionUpdated(_Model):
    """All settings, as they are from now on."""

    type: Literal["session.updated"] = "session.updated"
    session: SessionSettings


class ImagePreview(_Model):
    """What a picture looks like after `step` of `steps` steps. The next frame is binary: `bytes` long."""

    type: Literal["image.preview"] = "image.preview"
    input: int = Field(description="Which input it follows; a session's inputs count from 1.")
    step: int
    steps: int
    output_format: Format
    bytes: int


class ImageCompleted(_Model):
    """A finished picture. The next frame is binary: `bytes` long.

    `latency` is the seconds from the arrival of the input to this message, `timings` are seconds by stage.
    """

    type: Literal["image.completed"] = "image.completed"
    input: int = Field(description="Which input it follows; a session's inputs count from 1.")
    seed: int
    steps: int
    size: str
    output_format: Format
    bytes: int
    prompt_truncated: bool
    latency: float
    timings: dict[str, float]


class Dropped(_Model):
    """Inputs that get no picture: newer input came before they began or while they ran, or they were cancelled."""

    type: Literal["dropped"] = "dropped"
    inputs: list[int]
    reason: DropReason


class Error(_Model):
    """A message was refused, or, with `input`, that input gets no picture. The session goes on."""

    type: Literal["error"] = "error"
    input: int | None
    error: ErrorDetail


class Pong(_Model):
    """The answer to `ping`."""

    type: Literal["pong"] = "pong"
    id: int


ServerMessage = SessionCreated | SessionUpdated | ImagePreview | ImageCompleted | Dropped | Error | Pong


def parse(text: str) -> ClientMessage:
    """Read a text frame.

    Raises:
        ApiError: it is no message of the protocol; `param` names the field at fault.
    """
    if len(text) > MOST_CHARACTERS:
        message = f"the message has {len(text)} characters; a text message may have {MOST_CHARACTERS}"
        raise ApiError(413, message, code="message_too_large")
    try:
        return _CLIENT.validate_json(text)
    except ValidationError as error:
        raise _malformed(error) from error


def _malformed(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    kind = first["type"]
    if kind in ("json_invalid", "model_attributes_type", "dict_type"):
        return ApiError(400, f"the message is no JSON object ({quote(first['msg'])})", code="invalid_json")
    if kind == "union_tag_not_found":
        return ApiError(422, "type is required", param="type", code="missing_parameter")
    if kind == "union_tag_invalid":
        message = f"type is {quote(first['ctx']['tag'])!r}; allowed: {first['ctx']['expected_tags']}"
        return ApiError(422, message, param="type", code="invalid_value")
    # The first part of the location is the message's type. Settings are named as the engine's refusals name them.
    path = ".".join(str(part) for part in first["loc"][1:])
    param = quote(path.removeprefix("session."))
    if not param:
        return ApiError(400, f"the message is no JSON object ({quote(first['msg'])})", code="invalid_json")
    if kind == "extra_forbidden":
        return ApiError(422, f"{param} is not a known parameter", param=param, code="unknown_parameter")
    if kind == "missing":
        return ApiError(422, f"{param} is required", param=param, code="missing_parameter")
    return ApiError(422, f"{param}: {first['msg']}", param=param, code="invalid_value")
