"""From a checked HTTP request to the engine's request, and from its pictures to the answer."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastapi import Request
from starlette.responses import Response

from engine.client import EngineClient, Overloaded
from engine.noise import MAX_SEED
from engine.request import ControlKind, GenerateRequest, InvalidRequest, validate
from server import pictures
from server.answers import Answers
from server.catalogue import not_found
from server.errors import ApiError, failure, out_of_range
from server.events import EventStream
from server.formats import raw_format
from server.gather import make, stream, while_connected
from server.metrics import Metrics
from server.orders import Order, check_options, nearest, to_engine
from server.pictures import DEFAULT_QUALITY
from server.reading import read_form, read_json
from server.schemas import EditRequest, ImageRequest, Options, control_kind
from server.threads import BoundedThreads

# Threads that read control images; they share the processor with the engine.
DECODERS = 2
WAITING = 64  # control images that may wait for a thread
DECODE_SECONDS = 10.0


@dataclass(frozen=True)
class Source:
    """A control image before it is read: how to get its bytes, and what to call it when it is refused."""

    read: Callable[[], bytes]
    kind: ControlKind
    strength: float | None
    param: str


class ImageService:
    """Answers image requests. Pictures are decoded and, if large, encoded in threads, while the event loop waits."""

    def __init__(self, client: EngineClient, metrics: Metrics, max_control_pixels: int) -> None:
        self._client = client
        self._answers = Answers(client.manifest.name, metrics)
        self._max_control_pixels = max_control_pixels
        self._decoders = BoundedThreads("decode", DECODERS, WAITING, DECODE_SECONDS)

    async def generate(self, http: Request) -> Response:
        """Answer `POST /v1/images/generations`.

        Raises:
            ApiError, InvalidRequest, NotReady, Overloaded: nothing was made.
            DeadlineMissed, WorkerFailed, Cancelled, ClientGone: nothing will be.
        """
        body = await read_json(http, ImageRequest)
        source = None
        if body.control is not None and (kind := control_kind(body.control.type)) is not None:
            image = body.control.image
            source = Source(lambda: pictures.from_base64(image), kind, body.control.strength, "control.image")
        return await self._answer(http, body, source, "image_generation")

    async def edit(self, http: Request) -> Response:
        """Answer `POST /v1/images/edits`: the edges of the picture that was sent steer those that are made.

        Raises:
            as `generate`.
        """
        body, image = await read_form(http, EditRequest)
        kind = control_kind(body.control_type or "picture")
        source = None if kind is None else Source(lambda: image, kind, body.strength, "image")
        try:
            return await self._answer(http, body, source, "image_edit")
        except InvalidRequest as error:
            raise out_of_range(error, flat=True) from error

    async def _answer(self, http: Request, body: Options, source: Source | None, kind: str) -> Response:
        manifest = self._client.manifest
        if body.model not in (None, manifest.name):
            raise not_found(str(body.model), manifest)
        raw = raw_format(http.headers.get("accept", ""), body.output_format)
        n = check_options(body, raw)
        request = to_engine(body, manifest, None if source is None else source.strength)
        if (last := request.seed + n - 1) > MAX_SEED:
            raise InvalidRequest("seed", f"an integer from 0 to {MAX_SEED}", f"+ n - 1 is {last}")
        if source is not None:
            request = await self._with_control(request, source, body, kind)
        order = Order(
            request=request,
            n=n,
            format=raw or body.output_format or "png",
            quality=DEFAULT_QUALITY if body.output_compression is None else body.output_compression,
            request_id=http.state.request_id,
            kind=kind,
        )
        try:
            if body.stream:
                return await self._stream(http, order)
            made = await while_connected(http.receive, make(self._client, request, n, order.request_id))
        except Overloaded as error:
            raise failure(error, request.timeout) from error
        return await self._answers.whole(order, made, raw)

    async def _with_control(
        self, request: GenerateRequest, source: Source, body: Options, kind: str
    ) -> GenerateRequest:
        """The request with its control image; an edit of no certain size takes the size that suits its image."""
        manifest = self._client.manifest
        if not manifest.controllable:
            raise InvalidRequest("control", "none: this model follows no control image", "was given")
        chosen = None if kind == "image_edit" and body.size in (None, "auto") else validate(request, manifest).size
        most = self._max_control_pixels

        def read() -> GenerateRequest:
            data = source.read()
            size = chosen or nearest(manifest, *pictures.dimensions(data, most))
            pixels = pictures.read_control(data, source.kind, most, size)
            return replace(request, control=pixels, control_kind=source.kind, width=size.width, height=size.height)

        try:
            return await self._decoders.run(read)
        except pictures.PictureError as error:
            message = str(error)
        except TimeoutError:
            message = f"takes more than {DECODE_SECONDS:g} s to decode"
        raise ApiError(400, f"{source.param} {message}", param=source.param, code="invalid_image")

    async def _stream(self, http: Request, order: Order) -> Response:
        """Refusals are still answers of their own: the stream begins with the first event."""
        events = stream(self._client, order.request, order.n, order.request_id)
        try:
            first = await while_connected(http.receive, anext(events))
        except BaseException:
            await events.aclose()
            raise
        return EventStream(self._answers.frames(order, first, events))
