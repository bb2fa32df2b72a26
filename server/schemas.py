"""The shape of requests and answers: OpenAI's Images API, and what a consistency model with control adds to it.

Only types are judged here. Limits are the engine's (engine/request.py), so that each stands in one place; the figures
below only document them in the OpenAPI schema.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from engine.noise import MAX_SEED
from engine.request import MAX_PROMPT_CHARACTERS, MAX_STRENGTH, InvalidRequest
from engine.sampler import MAX_STEPS

MAX_IMAGES = 4
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _range(low: float, high: float) -> dict[str, JsonValue]:
    return {"minimum": low, "maximum": high}


class Control(_Request):
    """A picture to follow."""

    image: str = Field(description="A PNG, JPEG or WebP picture in base64, or as a data: URL.")
    type: Literal["edges", "picture"] = Field(
        default="edges",
        description="`edges`: the picture is a line drawing. `picture`: a picture whose edges are to be found.",
    )
    strength: Annotated[float, Field(json_schema_extra=_range(0, MAX_STRENGTH))] = 1.0


class ImageRequest(_Request):
    """`POST /v1/images/generations`."""

    prompt: Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS})]
    model: str | None = Field(default=None, description="The served bundle's name, as GET /v1/models lists it.")
    n: Annotated[int, Field(json_schema_extra=_range(1, MAX_IMAGES))] = 1
    size: str = Field(default="auto", description="`auto`, or WIDTHxHEIGHT as GET /v1/models lists them.")
    response_format: Literal["b64_json"] = "b64_json"
    seed: int | None = Field(
        default=None,
        json_schema_extra=_range(0, MAX_SEED),
        description="Same request, same seed, same picture. Picture i of n has seed + i. Absent: drawn at random.",
    )
    steps: int | None = Field(default=None, json_schema_extra=_range(1, MAX_STEPS))
    control: Control | None = None
    user: str | None = Field(default=None, description="Accepted for OpenAI's clients, and ignored.")


class ImageData(BaseModel):
    """One picture: a PNG in base64, the seed that makes it again, and how many steps were taken."""

    b64_json: str
    seed: int
    steps: int


class ImageResponse(BaseModel):
    """`timings` are seconds by stage; with several pictures, the longest of each."""

    created: int
    data: list[ImageData]
    size: str
    output_format: Literal["png"] = "png"
    prompt_truncated: bool
    timings: dict[str, float]


class Limits(BaseModel):
    """What the served model accepts."""

    sizes: list[str]
    default_size: str
    steps: tuple[int, int]
    default_steps: int
    images: tuple[int, int]
    prompt_characters: int
    prompt_tokens: int
    control: bool


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    licence: str
    limits: Limits


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


def parse_size(text: str) -> tuple[int, int] | tuple[None, None]:
    """Width and height of `WIDTHxHEIGHT`; nothing for `auto`.

    Raises:
        InvalidRequest: it is neither.
    """
    if text == "auto":
        return None, None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest("size", "auto, or a size of GET /v1/models as WIDTHxHEIGHT", f"is {text[:40]!r}")
    return int(match[1]), int(match[2])
