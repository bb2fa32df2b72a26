"""The one interface between the edge and whatever makes the pictures, and what travels over it."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.manifest import Manifest
from engine.request import GenerateRequest

RefusalReason = Literal["queue_full", "deadline", "draining"]
WorkerState = Literal["starting", "warm", "restarting", "stopped"]


class NotReady(Exception):
    """No worker is warm yet."""


class Overloaded(Exception):
    """Refused at the door: `retry_after` (seconds) is when the same request would probably be taken."""

    def __init__(self, reason: RefusalReason, retry_after: float) -> None:
        words = {
            "queue_full": "the queue is full",
            "deadline": "the picture cannot be ready within the timeout",
            "draining": "the server is shutting down",
        }
        super().__init__(f"{words[reason]}; try again in {retry_after:.1f} s")
        self.reason: RefusalReason = reason
        self.retry_after = retry_after


class DeadlineMissed(Exception):
    """The request was taken, but its timeout passed before its picture was ready."""


class WorkerFailed(Exception):
    """The request, or one like it, is not tried again: workers died on it each time, or a call raised an exception."""


class Cancelled(Exception):
    """The request was cancelled through `EngineClient.cancel`."""


@dataclass(frozen=True, eq=False)
class Preview:
    """What the model predicts after `step` of `steps` steps, uint8 [height, width, 3]; maybe coarse."""

    step: int
    steps: int
    image: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """The finished picture, uint8 [height, width, 3], always the last event.

    `steps` were taken, at least the request's `min_steps`. `timings` are seconds by stage: queue, text, control,
    denoise, decode; they are this request's own share of no batch, but the time that passed. `truncated`: the prompt
    had more tokens than the model reads. `cached`: its encoding was known. `replays`: how many workers died having it.
    """

    image: NDArray[np.uint8]
    seed: int
    steps: int
    timings: Mapping[str, float]
    truncated: bool = False
    cached: bool = False
    replays: int = 0
    worker: str = ""


Event = Preview | Picture


@dataclass(frozen=True)
class WorkerStats:
    """One worker, as the pool sees it. `memory_bytes` is its resident memory; counters only grow, over restarts too.

    `precision` is what its backend computes in; empty until the first process is warm.
    """

    name: str
    state: WorkerState
    restarts: int = 0
    running: int = 0
    memory_bytes: int = 0
    precision: str = ""


@dataclass(frozen=True)
class EngineStats:
    """A moment of the engine. Counters (from `refusals` on) only grow.

    `batch_sizes` counts denoiser calls by number of samples.
    """

    queued: int
    running: int
    workers: tuple[WorkerStats, ...]
    refusals: Mapping[RefusalReason, int] = field(default_factory=dict)
    cancelled: int = 0
    replays: int = 0
    prompt_hits: int = 0
    prompt_misses: int = 0
    batch_sizes: Mapping[int, int] = field(default_factory=dict)


class EngineClient(Protocol):
    """Makes pictures without blocking the event loop. All methods belong to the loop that called `start`."""

    @property
    def manifest(self) -> Manifest:
        """The served bundle's manifest; known before `start`."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a worker is warm."""
        ...

    async def start(self) -> None:
        """Load the model; returns once `ready`.

        Raises:
            BundleError, CompileError: it never will be.
        """
        ...

    def submit(self, request: GenerateRequest, request_id: str) -> AsyncGenerator[Event, None]:
        """The request's previews and then its picture. Closing the generator early cancels the request.

        `request_id` is the caller's, unique among requests in flight; it appears in the workers' logs. Nothing
        happens before the first event is awaited; only then are errors raised.

        Raises:
            InvalidRequest, NotReady, Overloaded: nothing was done.
            WorkerFailed: it was begun, or one like it was before.
            DeadlineMissed, Cancelled: it was taken, and there will be no picture.
        """
        ...

    def turn_away(self) -> Overloaded | None:
        """What any request would be refused with now, which counts as a refusal; None if one may be taken."""
        ...

    def cancel(self, request_id: str) -> bool:
        """Stop a request at its next step boundary; its generator raises Cancelled. False: no such request."""
        ...

    def stats(self) -> EngineStats:
        """What goes on; cheap enough to be called for every scrape."""
        ...

    async def close(self, grace: float) -> None:
        """Take no more requests, finish what runs within `grace` seconds, stop every worker."""
        ...
