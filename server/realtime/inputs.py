"""A session's inputs, and what the engine is asked for each."""

import secrets
from dataclasses import dataclass, replace

from engine.manifest import Manifest, Size
from engine.request import ControlKind, GenerateRequest, InvalidRequest, validate
from server import pictures
from server.errors import ApiError
from server.realtime.protocol import SessionSettings
from server.schemas import control_kind, parse_size
from server.threads import BoundedThreads


class ControlImage:
    """A binary frame, decoded when first needed, and kept for the next picture that follows the same one."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        self._data = data
        self._max_pixels = max_pixels
        self._decoded: tuple[ControlKind, Size, pictures.Pixels] | None = None

    def pixels(self, kind: ControlKind, size: Size) -> pictures.Pixels:
        """As the engine wants it, uint8 [size.height, size.width, 3]. Slow: call it in a thread.

        Raises:
            PictureError: it cannot be read.
        """
        if self._decoded is None or self._decoded[:2] != (kind, size):
            self._decoded = (kind, size, pictures.read_control(self._data, kind, self._max_pixels, size))
        return self._decoded[2]


@dataclass(frozen=True, eq=False)
class Input:
    """What a picture is to be made of, as it was when the client asked. `received` is in the loop's seconds."""

    number: int
    settings: SessionSettings
    control: ControlImage | None
    received: float


def check(settings: SessionSettings, manifest: Manifest) -> None:
    """Judge settings when they are set, so that a mistake shows at once. The prompt may still be empty.

    Raises:
        InvalidRequest: a field is outside its limits.
    """
    placeholder = settings if settings.prompt else settings.model_copy(update={"prompt": "-"})
    validate(_request(placeholder, manifest), manifest)


async def to_engine(item: Input, manifest: Manifest, threads: BoundedThreads) -> GenerateRequest:
    """Everything that the engine needs; the control image is decoded in a thread.

    Raises:
        ApiError, InvalidRequest: the input cannot be drawn.
        Overloaded: too many control images wait to be decoded.
    """
    request = _request(item.settings, manifest)
    job = validate(request, manifest)
    control, kind = item.control, control_kind(item.settings.control.type)
    if control is None or kind is None:
        return request
    if not manifest.controllable:
        raise InvalidRequest("control", "none: this model follows no control image", "was given")
    try:
        return replace(request, control=await threads.run(lambda: control.pixels(kind, job.size)), control_kind=kind)
    except pictures.PictureError as error:
        message = f"control.image {error}"
    except TimeoutError:
        message = "control.image takes too long to decode"
    raise ApiError(400, message, param="control.image", code="invalid_image")


def _request(settings: SessionSettings, manifest: Manifest) -> GenerateRequest:
    width, height = parse_size(settings.size)
    steps = manifest.steps.default if settings.steps is None else settings.steps
    return GenerateRequest(
        prompt=settings.prompt,
        seed=secrets.randbelow(2**32) if settings.seed is None else settings.seed,
        steps=steps,
        width=width,
        height=height,
        strength=settings.control.strength,
        min_steps=settings.min_steps,
        previews=max(0, min(settings.previews, steps - 1)),
    )
