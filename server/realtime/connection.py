"""One session, from the accepted connection to its end: frames in, latest wins, pictures out."""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import assert_never

from starlette.websockets import WebSocket

from engine.client import EngineClient, Overloaded, Picture, Preview
from engine.request import GenerateRequest, InvalidRequest
from server import pictures
from server.auth import Holder
from server.errors import FAILURES, ApiError, body_of, failure, out_of_range
from server.metrics import Metrics
from server.realtime.inputs import ControlImage, Input, check, to_engine
from server.realtime.pace import Pace
from server.realtime.protocol import (
    Cancel,
    ClientMessage,
    CloseCode,
    ControlClear,
    Dropped,
    DropReason,
    Error,
    Generate,
    ImageCompleted,
    ImagePreview,
    Ping,
    Pong,
    SessionCreated,
    SessionLimits,
    SessionSettings,
    SessionUpdate,
    SessionUpdated,
    parse,
)
from server.realtime.sender import Ended, Sender
from server.realtime.session import Change, LatestWins
from server.threads import BoundedThreads

_log = logging.getLogger(__name__)

# A client that sends nothing but mistakes is not worth its answers.
MOST_MISTAKES = 100  # in a row
# How long an input waits for its key's rate, and then for a place in the engine's queue, and how long between two
# tries, in seconds.
PATIENCE = 30.0
SHORTEST_WAIT, LONGEST_WAIT = 0.02, 1.0
CLOSE_SECONDS = 1.0  # for writing a close frame to a client that may not read


@dataclass(frozen=True)
class Service:
    """What all sessions share. Seconds and pixels as the settings give them."""

    client: EngineClient
    metrics: Metrics
    threads: BoundedThreads
    limits: SessionLimits
    stall_seconds: float
    max_control_pixels: int


class Connection:
    """A session's state and its three tasks: reading, writing, and the picture that is being made.

    `settings` outlive the connection: the endpoint keeps them for a client that comes back.
    """

    def __init__(
        self, socket: WebSocket, service: Service, name: str, settings: SessionSettings, holder: Holder | None
    ) -> None:
        self.settings = settings
        self._socket = socket
        self._service = service
        self._name = name
        self._holder = holder
        self._control: ControlImage | None = None
        self._inputs = 0
        self._mistakes = 0
        self._wins: LatestWins[Input] = LatestWins()
        self._making: asyncio.Task[None] | None = None
        self._sender = Sender(socket, service.stall_seconds, service.metrics)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, client_id: str, resumed: bool) -> None:
        """Serve the session until either side ends it."""
        service = self._service
        self._sender.say(
            SessionCreated(
                client_id=client_id,
                resumed=resumed,
                model=service.client.manifest.name,
                session=self.settings,
                limits=service.limits,
            )
        )
        parts = [asyncio.create_task(self._read()), asyncio.create_task(self._sender.run())]
        if self._holder is not None:
            parts.append(asyncio.create_task(self._until_withdrawn(self._holder)))
        try:
            await asyncio.wait((*parts, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [*parts, *([self._making] if self._making else [])]
            for task in tasks:
                task.cancel()
            self._ended.cancel()
            results = await asyncio.gather(self._ended, *tasks, return_exceptions=True)
        end = next((result for result in results if isinstance(result, Ended)), None)
        if end is None:
            for result in results:
                if isinstance(result, Exception):
                    _log.error("session %s failed", self._name, exc_info=result)
            end = Ended(CloseCode.INTERNAL_ERROR, "internal error; the server's log has the details")
        if end.code is not None:
            await close(self._socket, end.code, end.reason)

    def end(self, code: CloseCode, reason: str) -> None:
        """End the session from outside of it."""
        if not self._ended.done():
            self._ended.set_exception(Ended(code, reason))

    async def _until_withdrawn(self, holder: Holder) -> None:
        await holder.until_withdrawn()
        raise Ended(CloseCode.KEY_WITHDRAWN, "the API key was withdrawn")

    async def _read(self) -> None:
        idle = self._service.limits.idle_seconds
        pace = Pace(self._service.limits.messages_per_second)
        frames = self._service.metrics.realtime_frames.labels("in")
        while True:
            try:
                async with asyncio.timeout(idle):
                    message = await self._socket.receive()
            except TimeoutError:
                raise Ended(CloseCode.TIMEOUT, f"nothing was sent for {idle} s") from None
            if message["type"] == "websocket.disconnect":
                raise Ended
            frames.inc()
            await pace.wait()
            try:
                self._handle(message.get("text"), message.get("bytes"))
                self._mistakes = 0
            except InvalidRequest as error:
                self._mistake(out_of_range(error))
            except ApiError as error:
                self._mistake(error)

    def _handle(self, text: str | None, data: bytes | None) -> None:
        if text is not None:
            self._obey(parse(text))
            return
        if not data:
            raise ApiError(400, "control.image is empty", param="control.image", code="invalid_image")
        self._control = ControlImage(data, self._service.max_control_pixels)
        self._offer()

    def _obey(self, message: ClientMessage) -> None:
        match message:
            case SessionUpdate():
                settings = self.settings.updated(message.session)
                check(settings, self._service.client.manifest)
                self.settings = settings
                self._sender.say(SessionUpdated(session=settings))
            case Generate():
                self._offer()
            case ControlClear():
                self._control = None
            case Cancel():
                self._apply(self._wins.cancel())
            case Ping():
                self._sender.say(Pong(id=message.id))
            case _:
                assert_never(message)

    def _mistake(self, error: ApiError) -> None:
        self._mistakes += 1
        if self._mistakes > MOST_MISTAKES:
            raise Ended(CloseCode.INVALID_MESSAGES, f"{self._mistakes} messages in a row were invalid")
        self._refuse(None, error)

    def _refuse(self, number: int | None, error: ApiError) -> None:
        self._sender.say(Error(input=number, error=body_of(error)))

    def _offer(self) -> None:
        self._inputs += 1
        now = asyncio.get_running_loop().time()
        item = Input(self._inputs, self.settings, self._control, now)
        self._apply(self._wins.offer(item, self.settings.interrupt))

    def _apply(self, change: Change[Input]) -> None:
        stopped = self._making
        if change.stop and stopped is not None:
            stopped.cancel()
            self._sender.forget_preview()
        for item, reason in change.dropped:
            self._drop(item, reason)
        if change.start is not None:
            self._making = asyncio.create_task(self._make(change.start, stopped if change.stop else None))

    def _drop(self, item: Input, reason: DropReason) -> None:
        self._service.metrics.realtime_dropped.labels(reason).inc()
        self._sender.say(Dropped(inputs=[item.number], reason=reason))

    async def _make(self, item: Input, stopped: asyncio.Task[None] | None) -> None:
        """Take one input to its end, and begin the next."""
        if stopped is not None:
            await asyncio.wait((stopped,))
        try:
            await self._draw(item)
        except InvalidRequest as error:
            self._refuse(item.number, out_of_range(error))
        except ApiError as error:
            self._refuse(item.number, error)
        except Exception as error:
            if not isinstance(error, FAILURES):
                _log.exception("session %s, input %d", self._name, item.number)
            self._refuse(item.number, failure(error))
        if self._wins.running is item:
            self._apply(self._wins.done())

    async def _draw(self, item: Input) -> None:
        service, settings = self._service, item.settings
        if self._holder is not None and not await self._allowed(self._holder):
            self._drop(item, "superseded")
            return
        request = await to_engine(item, service.client.manifest, service.threads)
        picture = await self._patiently(item, request)
        if picture is None:
            self._drop(item, "superseded")
            return
        start = time.perf_counter()
        data = await self._encode(picture.image, settings)
        timings = {**picture.timings, "encode": time.perf_counter() - start}
        service.metrics.stages(timings)
        service.metrics.images.inc()
        if self._wins.running is item:
            self._wins.delivering()
            await self._sender.show(self._header(item, picture, timings, len(data)), data)

    async def _allowed(self, holder: Holder) -> bool:
        """Count an input when its key's rate allows it; False: newer input came while it waited.

        Raises:
            ApiError: 429, that would take too long.
        """
        give_up = asyncio.get_running_loop().time() + PATIENCE
        while wait := holder.wait():
            if asyncio.get_running_loop().time() + wait > give_up:
                break
            if self._wins.waiting is not None:
                return False
            await asyncio.sleep(min(wait, LONGEST_WAIT))
        holder.take()
        return True

    async def _patiently(self, item: Input, request: GenerateRequest) -> Picture | None:
        """The picture, even if others' requests fill the queue for now; None: newer input came while it waited."""
        give_up = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return await self._submit(item, request)
            except Overloaded as full:
                if full.reason != "queue_full" or asyncio.get_running_loop().time() > give_up:
                    raise
                if self._wins.waiting is not None:
                    return None
                await asyncio.sleep(min(max(full.retry_after, SHORTEST_WAIT), LONGEST_WAIT))

    async def _submit(self, item: Input, request: GenerateRequest) -> Picture:
        picture: Picture | None = None
        async with aclosing(self._service.client.submit(request, f"{self._name}-{item.number}")) as events:
            async for event in events:
                if isinstance(event, Preview):
                    self._show_preview(item, event, await self._encode(event.image, item.settings))
                else:
                    picture = event
        assert picture is not None, "the engine ended a request without a picture or an error"
        return picture

    async def _encode(self, image: pictures.Pixels, settings: SessionSettings) -> bytes:
        return await self._service.threads.run(
            lambda: pictures.encode(image, settings.output_format, settings.output_compression),
            at_once=pictures.quick(image),
        )

    def _show_preview(self, item: Input, preview: Preview, data: bytes) -> None:
        header = ImagePreview(
            input=item.number,
            step=preview.step,
            steps=preview.steps,
            output_format=item.settings.output_format,
            bytes=len(data),
        )
        self._sender.show_preview(header, data)

    def _header(self, item: Input, picture: Picture, timings: Mapping[str, float], length: int) -> ImageCompleted:
        height, width = picture.image.shape[:2]
        return ImageCompleted(
            input=item.number,
            seed=picture.seed,
            steps=picture.steps,
            size=f"{width}x{height}",
            output_format=item.settings.output_format,
            bytes=length,
            prompt_truncated=picture.truncated,
            latency=round(asyncio.get_running_loop().time() - item.received, 6),
            timings={stage: round(seconds, 6) for stage, seconds in timings.items()},
        )


async def close(socket: WebSocket, code: CloseCode, reason: str) -> None:
    """Say why the session ends, unless the client does not even read that."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code, reason)
    except Exception:  # it has gone already, in one of several ways
        _log.debug("a client was gone before it was told: %d %s", code, reason)
