"""The shape of requests and answers: OpenAI's Images API, and what a consistency model with control adds to it.

Only types are judged here. Limits are the engine's (engine/request.py), so that each stands in one place; the figures
below only document them in the OpenAPI schema.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from engine.noise import MAX_SEED
from engine.request import MAX_PROMPT_CHARACTERS, MAX_STRENGTH, MAX_TIMEOUT, ControlKind, InvalidRequest, Priority
from engine.sampler import MAX_STEPS
from server.pictures import DEFAULT_QUALITY, Format

MAX_IMAGES = 10
MAX_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def _range(low: float, high: float) -> dict[str, JsonValue]:
    return {"minimum": low, "maximum": high}


_TIMEOUT: dict[str, JsonValue] = {"exclusiveMinimum": 0, "maximum": MAX_TIMEOUT}
_STRENGTH = Annotated[float | None, Field(json_schema_extra=_range(0, MAX_STRENGTH))]
_Ignored = Annotated[str | None, Field(description="Accepted for OpenAI's clients, and ignored.")]
# `hed` is what the authors of PixArt-δ call edges that are found in a picture.
ControlType = Literal["edges", "picture", "hed", "none"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Control(_Request):
    """A picture to follow."""

    image: str = Field(description="A PNG, JPEG or WebP picture in base64, or as a data: URL.")
    type: ControlType = Field(
        default="edges",
        description="`edges`: the picture is a line drawing. `picture` or `hed`: a picture whose edges are to be found."
        " `none`: it is not looked at.",
    )
    strength: _STRENGTH = Field(default=None, description="0 changes nothing; absent: 1.")


class Options(_Request):
    """What both ways to make pictures take. An absent field and null are the same."""

    prompt: str = Field(
        json_schema_extra={"minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS},
        description="What to draw. What exceeds the model's tokens is cut, and the answer says so.",
    )
    model: str | None = Field(default=None, description="The served bundle's name, as GET /v1/models lists it.")
    n: int | None = Field(default=None, json_schema_extra=_range(1, MAX_IMAGES), description="Pictures; absent: 1.")
    size: str | None = Field(
        default=None,
        json_schema_extra={"pattern": f"^(auto|{_SIZE.pattern})$"},
        description="`auto`, or WIDTHxHEIGHT as GET /v1/models lists them.",
    )
    size_match: Literal["exact", "nearest"] | None = Field(
        default=None,
        description="`exact` (the default) refuses a size that the model does not have; `nearest` takes the one of the"
        " nearest aspect ratio instead, and of the nearest area among several.",
    )
    response_format: Literal["b64_json"] | None = Field(
        default=None, description="Pictures come in the answer; this server keeps none for a `url`."
    )
    output_format: Format | None = Field(default=None, description="Absent: png, or what the Accept header asks for.")
    output_compression: int | None = Field(
        default=None,
        json_schema_extra=_range(0, 100),
        description=f"Quality of JPEG and WebP; absent: {DEFAULT_QUALITY}. PNG loses nothing, and takes only 100.",
    )
    stream: bool | None = Field(default=None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        default=None,
        json_schema_extra=_range(0, MAX_PARTIAL_IMAGES),
        description="With `stream`: unfinished pictures to send before each finished one.",
    )
    seed: int | None = Field(
        default=None,
        json_schema_extra=_range(0, MAX_SEED),
        description="Same request, same seed, same picture. Picture i of n has seed + i. Absent: drawn at random.",
    )
    steps: int | None = Field(
        default=None,
        json_schema_extra=_range(1, MAX_STEPS),
        description="More steps, finer picture, more time; absent: the model's, usually 4.",
    )
    min_steps: int | None = Field(
        default=None,
        json_schema_extra=_range(1, MAX_STEPS),
        description="How few steps will do when the server is busy; absent: `steps`.",
    )
    priority: Priority | None = Field(default=None, description="`batch` waits for `interactive`, the default.")
    timeout: float | None = Field(
        default=None,
        json_schema_extra=_TIMEOUT,
        description="Seconds after which the picture is worthless; the request is refused at once if they cannot do.",
    )
    background: Literal["auto", "opaque"] | None = Field(
        default=None, description="Pictures are opaque, so `transparent` is refused."
    )
    quality: _Ignored = None
    style: _Ignored = None
    moderation: _Ignored = None
    user: _Ignored = None
    safety_identifier: _Ignored = None


class ImageRequest(Options):
    """`POST /v1/images/generations`."""

    control: Control | None = Field(default=None, description="A picture whose lines or edges are followed.")


class EditRequest(Options):
    """The fields of the form of `POST /v1/images/edits`, besides the file `image`."""

    control_type: ControlType | None = Field(
        default=None, description="`picture` (the default) finds the edges of `image`; `edges`: it is a line drawing."
    )
    strength: _STRENGTH = Field(default=None, description="How closely the edges are followed; absent: 1.")
    input_fidelity: _Ignored = None


def control_kind(kind: ControlType) -> ControlKind | None:
    """The engine's word for it; None: no control."""
    if kind == "none":
        return None
    return "picture" if kind == "hed" else kind


class _Answer(BaseModel):
    # What has a default is sent all the same.
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class ImageData(_Answer):
    """One picture in base64, the seed that makes it again, and how many steps were taken."""

    b64_json: str
    seed: int
    steps: int


class ImageResponse(_Answer):
    """`timings` are seconds by stage; with several pictures, the longest of each."""

    created: int
    background: Literal["opaque"] = "opaque"
    data: list[ImageData]
    output_format: Format
    size: str
    prompt_truncated: bool
    request_id: str
    timings: dict[str, float]


class TokenCounts(_Answer):
    """What OpenAI counts by kind."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(_Answer):
    """All zero: nothing is billed here, so nothing is counted."""

    input_tokens: int = 0
    input_tokens_details: TokenCounts = TokenCounts()
    output_tokens: int = 0
    total_tokens: int = 0


class PartialImageEvent(_Answer):
    """An unfinished picture; `step` and `index` (which of `n` pictures) are additions to OpenAI's event."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: Format
    partial_image_index: int
    quality: Literal["auto"] = "auto"
    size: str
    index: int
    step: int


class CompletedEvent(_Answer):
    """A finished picture; the fields from `index` on are additions to OpenAI's event."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: Format
    quality: Literal["auto"] = "auto"
    size: str
    usage: Usage = Usage()
    index: int
    seed: int
    steps: int
    prompt_truncated: bool
    request_id: str
    timings: dict[str, float]


class ErrorDetail(_Answer):
    """What went wrong; `param` names the field to mend, where there is one."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class ErrorResponse(_Answer):
    """Every answer that is no success."""

    error: ErrorDetail


class ErrorEvent(ErrorResponse):
    """The last event of a stream that failed."""

    type: Literal["error"] = "error"


class Limits(_Answer):
    """What the served model accepts."""

    sizes: list[str]
    default_size: str
    steps: tuple[int, int]
    default_steps: int
    images: tuple[int, int]
    prompt_characters: int
    prompt_tokens: int
    control: bool


class Model(_Answer):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    licence: str
    limits: Limits


class ModelList(_Answer):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


def parse_size(text: str | None) -> tuple[int, int] | tuple[None, None]:
    """Width and height of `WIDTHxHEIGHT`; nothing for `auto` or None.

    Raises:
        InvalidRequest: it is neither.
    """
    if text is None or text == "auto":
        return None, None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest("size", "auto, or a size of GET /v1/models as WIDTHxHEIGHT", f"is {text[:40]!r}")
    return int(match[1]), int(match[2])
