"""From a checked body to the engine's request: what is to be made, and how it is to be sent."""

import math
import secrets
from dataclasses import dataclass, replace

from engine.manifest import Manifest, Size
from engine.request import GenerateRequest, InvalidRequest, validate
from server.pictures import Format
from server.schemas import MAX_IMAGES, MAX_PARTIAL_IMAGES, Options, parse_size


@dataclass(frozen=True)
class Order:
    """What is to be made, and how it is to be sent."""

    request: GenerateRequest
    n: int
    format: Format
    quality: int
    request_id: str
    kind: str  # of events: image_generation or image_edit


def check_options(body: Options, raw: Format | None) -> int:
    """Judge what concerns the answer's form alone; returns how many pictures are wanted.

    Raises:
        InvalidRequest: a field is outside its limits, or does not go with another.
    """
    n = 1 if body.n is None else body.n
    if not 1 <= n <= MAX_IMAGES:
        raise InvalidRequest("n", f"an integer from 1 to {MAX_IMAGES}", f"is {n}")
    partial = body.partial_images
    if partial is not None and not 0 <= partial <= MAX_PARTIAL_IMAGES:
        raise InvalidRequest("partial_images", f"an integer from 0 to {MAX_PARTIAL_IMAGES}", f"is {partial}")
    if partial and not body.stream:
        raise InvalidRequest("partial_images", "0 without stream", f"is {partial}")
    if (quality := body.output_compression) is not None:
        if not 0 <= quality <= 100:
            raise InvalidRequest("output_compression", "an integer from 0 to 100", f"is {quality}")
        if quality != 100 and (raw or body.output_format or "png") == "png":
            raise InvalidRequest("output_compression", "100 for png, which loses nothing", f"is {quality}")
    if raw is not None:
        if n != 1:
            raise InvalidRequest("n", f"1 when Accept asks for image/{raw}", f"is {n}")
        if body.stream:
            raise InvalidRequest("stream", f"false when Accept asks for image/{raw}", "is true")
        if body.output_format not in (None, raw):
            raise InvalidRequest("output_format", f"{raw}, as the Accept header says", f"is {body.output_format}")
    return n


def to_engine(body: Options, manifest: Manifest, strength: float | None) -> GenerateRequest:
    """Translate and check everything but the control image.

    Raises:
        InvalidRequest: a field is outside its limits.
    """
    width, height = parse_size(body.size)
    if body.size_match == "nearest" and width is not None and height is not None:
        size = nearest(manifest, width, height)
        width, height = size.width, size.height
    request = GenerateRequest(
        prompt=body.prompt,
        seed=secrets.randbelow(2**32) if body.seed is None else body.seed,
        steps=body.steps,
        width=width,
        height=height,
        strength=1.0 if strength is None else strength,
        min_steps=body.min_steps,
        priority=body.priority or "interactive",
        timeout=body.timeout,
    )
    steps = validate(request, manifest).steps
    # Between few steps there are few unfinished pictures to show.
    return replace(request, previews=min(body.partial_images or 0, steps - 1))


def nearest(manifest: Manifest, width: int, height: int) -> Size:
    """The model's size of the nearest aspect ratio; among several of those, that of the nearest area."""

    def distance(size: Size) -> tuple[float, float]:
        ratio = abs(math.log(size.width / size.height * height / width))
        area = abs(math.log(size.width * size.height / (width * height)))
        return round(ratio, 6), area

    return min(manifest.images.allowed, key=distance)
