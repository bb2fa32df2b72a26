"""From a checked HTTP request to the engine's request, and from its pictures to the answer."""

import asyncio
import base64
import secrets
import time
from dataclasses import replace

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from engine.client import EngineClient
from engine.manifest import Manifest, Size
from engine.request import MAX_PROMPT_CHARACTERS, GenerateRequest, InvalidRequest, validate
from server import pictures
from server.errors import ApiError, quote
from server.gather import make, while_connected
from server.metrics import Metrics
from server.schemas import MAX_IMAGES, Control, ImageData, ImageRequest, ImageResponse, Limits, Model, parse_size


class ImageService:
    """Answers image requests. Pictures are decoded and encoded in threads; the event loop only waits."""

    def __init__(self, client: EngineClient, metrics: Metrics, max_control_pixels: int) -> None:
        self._client = client
        self._metrics = metrics
        self._max_control_pixels = max_control_pixels
        self.model = describe(client.manifest, int(time.time()))

    async def create(self, body: ImageRequest, http: Request) -> ImageResponse:
        """Make the pictures that `body` asks for.

        Raises:
            ApiError, InvalidRequest, NotReady, Overloaded: nothing was made.
            DeadlineMissed, WorkerFailed, Cancelled, ClientGone: nothing will be.
        """
        manifest = self._client.manifest
        if body.model not in (None, manifest.name):
            message = f"model {quote(str(body.model))!r} is not served here; this server has {manifest.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        request = to_engine(body, manifest)
        if body.control is not None:
            if not manifest.controllable:
                raise InvalidRequest("control", "none: this model follows no control image", "was given")
            size = validate(request, manifest).size
            control = await asyncio.to_thread(read_control, body.control, size, self._max_control_pixels)
            request = replace(request, control=control, control_kind=body.control.type)
        making = make(self._client, request, body.n, http.state.request_id)
        made = await while_connected(http.receive, making)
        start = time.perf_counter()
        encoded = await asyncio.to_thread(lambda: [base64.b64encode(pictures.to_png(each.image)) for each in made])
        stages = {stage: max(each.timings[stage] for each in made) for stage in made[0].timings}
        timings = stages | {"encode": time.perf_counter() - start}
        self._metrics.stages(timings)
        self._metrics.images.inc(len(encoded))
        height, width = made[0].image.shape[:2]
        return ImageResponse(
            created=int(time.time()),
            data=[
                ImageData(b64_json=png.decode(), seed=each.seed, steps=each.steps)
                for png, each in zip(encoded, made, strict=True)
            ],
            size=f"{width}x{height}",
            prompt_truncated=made[0].truncated,
            timings={stage: round(seconds, 6) for stage, seconds in timings.items()},
        )


def to_engine(body: ImageRequest, manifest: Manifest) -> GenerateRequest:
    """Translate and check everything but the control image.

    Raises:
        InvalidRequest: a field is outside its limits.
    """
    if not 1 <= body.n <= MAX_IMAGES:
        raise InvalidRequest("n", f"an integer from 1 to {MAX_IMAGES}", f"is {body.n}")
    width, height = parse_size(body.size)
    request = GenerateRequest(
        prompt=body.prompt,
        seed=secrets.randbelow(2**32) if body.seed is None else body.seed,
        steps=body.steps,
        width=width,
        height=height,
        strength=1.0 if body.control is None else body.control.strength,
    )
    validate(request, manifest)
    return request


def read_control(control: Control, size: Size, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a control image to uint8 [size.height, size.width, 3].

    Raises:
        ApiError: it cannot be read.
    """
    try:
        return pictures.read_control(pictures.from_base64(control.image), control.type, max_pixels, size)
    except pictures.PictureError as error:
        message = f"control.image {error}"
        raise ApiError(400, message, param="control.image", code="invalid_image") from error


def describe(manifest: Manifest, created: int) -> Model:
    """The model's entry in GET /v1/models."""
    default, steps = manifest.images.default, manifest.steps
    return Model(
        id=manifest.name,
        created=created,
        owned_by="pixart-delta-server",
        licence=manifest.licence,
        limits=Limits(
            sizes=_sizes(manifest),
            default_size=f"{default.width}x{default.height}",
            steps=(steps.min, steps.max),
            default_steps=steps.default,
            images=(1, MAX_IMAGES),
            prompt_characters=MAX_PROMPT_CHARACTERS,
            prompt_tokens=manifest.max_tokens,
            control=manifest.controllable,
        ),
    )


def _sizes(manifest: Manifest) -> list[str]:
    return [f"{size.width}x{size.height}" for size in manifest.images.allowed]
