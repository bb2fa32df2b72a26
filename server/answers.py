"""From the engine's pictures to the answer: JSON, the bytes of one picture, or server-sent events."""

import functools
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from pybase64 import b64encode_as_string
from starlette.responses import Response

from engine.client import Event, Picture, Preview
from server import pictures
from server.errors import FAILURES, ApiError, body_of, failure
from server.events import frame
from server.metrics import Metrics
from server.orders import Order
from server.pictures import Format
from server.schemas import CompletedEvent, ErrorEvent, ImageData, ImageResponse, PartialImageEvent
from server.threads import BoundedThreads

# They share the processor with the engine. Nothing is refused here: what waits was let in by the engine's queue.
ENCODERS = 2
ENCODE_SECONDS = 60.0


class Answers:
    """Encodes pictures, large ones in threads, and counts them."""

    def __init__(self, model: str, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics
        self._threads = BoundedThreads("encode", ENCODERS, 100_000, ENCODE_SECONDS)

    async def whole(self, order: Order, made: Sequence[Picture], raw: Format | None) -> Response:
        start = time.perf_counter()

        def timings() -> dict[str, float]:
            stages = {stage: max(each.timings[stage] for each in made) for stage in made[0].timings}
            return stages | {"encode": time.perf_counter() - start}

        def work() -> tuple[Response, dict[str, float]]:
            encoded = [self._encode(order, each) for each in made]
            seconds = timings()
            if raw is not None:
                return _raw(encoded[0], made[0], seconds, raw), seconds
            answer = ImageResponse(
                created=int(time.time()),
                data=[
                    ImageData(b64_json=b64encode_as_string(data), seed=each.seed, steps=each.steps)
                    for data, each in zip(encoded, made, strict=True)
                ],
                output_format=order.format,
                size=_size(made[0]),
                prompt_truncated=made[0].truncated,
                request_id=order.request_id,
                timings=rounded(seconds),
            )
            return Response(answer.model_dump_json(), media_type="application/json"), seconds

        response, seconds = await self._threads.run(work, at_once=pictures.quick(*(each.image for each in made)))
        self._count(seconds, len(made))
        return response

    async def frames(
        self, order: Order, first: tuple[int, Event], events: AsyncGenerator[tuple[int, Event], None]
    ) -> AsyncGenerator[bytes, None]:
        sent = [0] * order.n

        def partial(index: int, event: Preview) -> bytes:
            return frame(
                PartialImageEvent(
                    type=f"{order.kind}.partial_image",  # type: ignore[arg-type]
                    b64_json=b64encode_as_string(self._encode(order, event)),
                    created_at=int(time.time()),
                    output_format=order.format,
                    partial_image_index=sent[index],
                    size=_size(event),
                    index=index,
                    step=event.step,
                ),
                f"{order.kind}.partial_image",
            )

        def completed(index: int, event: Picture) -> tuple[bytes, dict[str, float]]:
            start = time.perf_counter()
            data = b64encode_as_string(self._encode(order, event))
            seconds = {**event.timings, "encode": time.perf_counter() - start}
            done = CompletedEvent(
                type=f"{order.kind}.completed",  # type: ignore[arg-type]
                b64_json=data,
                created_at=int(time.time()),
                output_format=order.format,
                size=_size(event),
                index=index,
                seed=event.seed,
                steps=event.steps,
                prompt_truncated=event.truncated,
                request_id=order.request_id,
                timings=rounded(seconds),
            )
            return frame(done, done.type), seconds

        async with aclosing(events):
            try:
                async for index, event in _chain(first, events):
                    quick = pictures.quick(event.image)
                    if isinstance(event, Preview):
                        yield await self._threads.run(functools.partial(partial, index, event), at_once=quick)
                        sent[index] += 1
                    else:
                        work = functools.partial(completed, index, event)
                        data, seconds = await self._threads.run(work, at_once=quick)
                        self._count(seconds, 1)
                        yield data
            except (ApiError, *FAILURES, TimeoutError) as error:
                refusal = error if isinstance(error, ApiError) else failure(error, order.request.timeout)
                yield frame(ErrorEvent(error=body_of(refusal)), "error")

    def _encode(self, order: Order, made: Picture | Preview) -> bytes:
        """What a PNG notes depends on the picture alone, so that the same picture is the same file."""
        notes: dict[str, str | int] | None = None
        if isinstance(made, Picture):
            notes = {"model": self._model, "seed": made.seed, "steps": made.steps, "size": _size(made)}
        return pictures.encode(made.image, order.format, order.quality, notes)

    def _count(self, seconds: dict[str, float], n: int) -> None:
        self._metrics.stages(seconds)
        self._metrics.images.inc(n)


async def _chain(
    first: tuple[int, Event], rest: AsyncGenerator[tuple[int, Event], None]
) -> AsyncGenerator[tuple[int, Event], None]:
    yield first
    async for item in rest:
        yield item


def _raw(data: bytes, made: Picture, seconds: dict[str, float], format: Format) -> Response:
    headers = {
        "X-Seed": str(made.seed),
        "X-Steps": str(made.steps),
        "X-Prompt-Truncated": str(made.truncated).lower(),
        "Server-Timing": ", ".join(f"{stage};dur={1000 * spent:.3f}" for stage, spent in seconds.items()),
        "Vary": "Accept",
    }
    return Response(data, headers=headers, media_type=f"image/{format}")


def _size(made: Picture | Preview) -> str:
    height, width = made.image.shape[:2]
    return f"{width}x{height}"


def rounded(timings: dict[str, float]) -> dict[str, float]:
    """Seconds by stage, to the microsecond."""
    return {stage: round(seconds, 6) for stage, seconds in timings.items()}
