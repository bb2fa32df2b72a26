"""The engine as the routes see it: each picture is noted, for metrics and log, and is let through or withheld."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from engine.client import EngineClient, EngineStats, Event, Overloaded, Picture
from engine.manifest import Manifest
from engine.request import GenerateRequest
from server import logs
from server.content import ContentFilter
from server.errors import ApiError
from server.metrics import Metrics


class RecordedClient:
    """An `EngineClient` around another. Prompts are written down only if the operator asked for that.

    Its `submit` raises ApiError, too: the content filter, if there is one, withheld the picture or a preview of it.
    """

    def __init__(
        self, client: EngineClient, metrics: Metrics, log_prompts: bool = False, content: ContentFilter | None = None
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._log_prompts = log_prompts
        self._content = content

    @property
    def manifest(self) -> Manifest:
        """See `EngineClient.manifest`."""
        return self._client.manifest

    @property
    def ready(self) -> bool:
        """See `EngineClient.ready`."""
        return self._client.ready

    async def start(self) -> None:
        """See `EngineClient.start`."""
        await self._client.start()

    async def submit(self, request: GenerateRequest, request_id: str) -> AsyncGenerator[Event, None]:
        """See `EngineClient.submit`."""
        if self._log_prompts:
            logs.note(prompt=request.prompt)
        async with aclosing(self._client.submit(request, request_id)) as events:
            async for event in events:
                if isinstance(event, Picture):
                    self._record(event)
                await self._judge(event)
                yield event

    async def _judge(self, event: Event) -> None:
        if self._content is None:
            return
        start = time.perf_counter()
        withheld = await self._content.withholds(event.image)
        self._metrics.stage_seconds.labels("filter").observe(time.perf_counter() - start)
        if withheld:
            self._metrics.refused("content_filtered")
            raise ApiError(400, "the content filter withholds this picture", code="content_filtered")

    def _record(self, picture: Picture) -> None:
        self._metrics.steps.observe(picture.steps)
        self._metrics.step_seconds.observe(picture.timings["denoise"] / picture.steps)
        logs.note(
            steps=picture.steps,
            seed=picture.seed,
            worker=picture.worker,
            cached=picture.cached,
            replays=picture.replays,
        )

    def turn_away(self) -> Overloaded | None:
        """See `EngineClient.turn_away`."""
        return self._client.turn_away()

    def cancel(self, request_id: str) -> bool:
        """See `EngineClient.cancel`."""
        return self._client.cancel(request_id)

    def stats(self) -> EngineStats:
        """See `EngineClient.stats`."""
        return self._client.stats()

    async def close(self, grace: float) -> None:
        """See `EngineClient.close`."""
        await self._client.close(grace)
        if self._content is not None:
            self._content.close()
