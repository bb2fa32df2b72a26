"""The engine inside a command's own process, warm: what `generate`, `bench` and `doctor` share."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import numpy as np

from engine.bundle import Bundle
from engine.client import Picture
from engine.local import LocalClient
from engine.request import GenerateRequest
from server.settings import Settings

Progress = Callable[[str], None]


@asynccontextmanager
async def warm_engine(bundle: Bundle, settings: Settings, say: Progress) -> AsyncIterator[LocalClient]:
    """Compile a bundle and make throw-away pictures until every module has run.

    Raises:
        BundleError, CompileError: the bundle cannot be used.
    """
    client = LocalClient(bundle, settings.create_backend)
    start = time.perf_counter()
    try:
        await client.start()
        (worker,) = client.stats().workers
        what = f"{len(bundle.manifest.modules)} modules for {settings.backend} {worker.precision}"
        say(f"loaded {what} in {_since(start)}")
        request = GenerateRequest("warm-up")
        if bundle.manifest.controllable:
            size = bundle.manifest.images.default
            blank = np.zeros((size.height, size.width, 3), dtype=np.uint8)
            await picture(client, replace(request, control=blank, control_kind="picture"))
        await picture(client, request)
        start = time.perf_counter()
        await picture(client, request)
        say(f"warmed up; a picture takes {_since(start)}")
        yield client
    finally:
        await client.close(0.0)


async def picture(client: LocalClient, request: GenerateRequest) -> Picture:
    """Make one picture.

    Raises:
        InvalidRequest: the request is outside the limits.
    """
    async with aclosing(client.submit(request, "local")) as events:
        async for event in events:
            if isinstance(event, Picture):
                return event
    raise AssertionError("an engine's last event is a picture")


def _since(start: float) -> str:
    seconds = time.perf_counter() - start
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
