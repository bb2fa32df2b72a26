"""Where pictures are made, as the HTTP layer sees it."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np

from engine.backends import Backend
from engine.bundle import Bundle
from engine.generate import GenerateResult, Generator
from engine.manifest import Manifest
from engine.request import GenerateRequest


class NotReady(Exception):
    """The model is still being loaded."""


class Busy(Exception):
    """As many requests wait as may wait; `retry_after` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"busy; try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class Runner(Protocol):
    """Makes pictures without blocking the event loop."""

    manifest: Manifest

    @property
    def ready(self) -> bool:
        """Whether `generate` will not raise NotReady."""
        ...

    async def start(self) -> None:
        """Load the model; returns once it is ready.

        Raises:
            BundleError, CompileError: it never will be.
        """
        ...

    async def generate(self, request: GenerateRequest, n: int) -> GenerateResult:
        """Make `n` pictures, as engine.generate.Generator does.

        Raises:
            InvalidRequest, NotReady, Busy: nothing was done.
        """
        ...

    async def close(self) -> None:
        """Finish what was started, and stop."""
        ...


class ThreadRunner:
    """A generator in a thread of its own, one request at a time, first come first served."""

    def __init__(
        self, bundle: Bundle, backend: Callable[[], Backend], capacity: int, progress: Callable[[str], None]
    ) -> None:
        self.manifest = bundle.manifest
        self._bundle = bundle
        self._backend = backend
        self._capacity = capacity
        self._progress = progress
        self._thread = ThreadPoolExecutor(1, "generator")
        self._generator: Generator | None = None
        self._pending = 0
        self._seconds = 1.0  # of a typical request, learnt while running

    @property
    def ready(self) -> bool:
        return self._generator is not None

    async def start(self) -> None:
        self._generator = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    def _load(self) -> Generator:
        generator, self._seconds = load_generator(self._bundle, self._backend(), self._progress)
        return generator

    async def generate(self, request: GenerateRequest, n: int) -> GenerateResult:
        if self._generator is None:
            raise NotReady
        if self._pending >= self._capacity:
            raise Busy(self._pending * self._seconds)
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, request, n)
        finally:
            self._pending -= 1

    def _timed(self, request: GenerateRequest, n: int) -> GenerateResult:
        assert self._generator is not None
        start = time.perf_counter()
        result = self._generator.generate(request, n)
        self._seconds += 0.2 * (time.perf_counter() - start - self._seconds)
        return result

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)


def load_generator(bundle: Bundle, backend: Backend, progress: Callable[[str], None]) -> tuple[Generator, float]:
    """Compile a bundle and make throw-away pictures until every module has run; and the seconds that one then takes.

    Raises:
        BundleError, CompileError: the bundle cannot be used.
    """
    start = time.perf_counter()
    generator = Generator(bundle, backend)
    compiled = time.perf_counter() - start
    progress(f"compiled {len(bundle.manifest.modules)} modules for {backend.name} in {compiled:.1f} s")
    request = GenerateRequest("warm-up")
    if bundle.manifest.controllable:
        size = bundle.manifest.images.default
        blank = np.zeros((size.height, size.width, 3), dtype=np.uint8)
        generator.generate(replace(request, control=blank, control_kind="picture"))
    generator.generate(request)
    start = time.perf_counter()
    generator.generate(request)
    seconds = time.perf_counter() - start
    progress(f"warmed up; a picture takes {seconds * 1000:.0f} ms")
    return generator, seconds
