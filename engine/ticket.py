"""What the scheduler is told of a request, and what it says in return."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from engine.client import RefusalReason
from engine.request import Priority

Shape = Hashable  # requests of one shape class may share a call; `engine.request.shape_class`
Stage = Literal["text", "control", "denoise", "preview", "decode"]


@dataclass(frozen=True)
class Preparation:
    """Which encodings a request still lacks: its prompt's (False: in the cache) and its control image's."""

    text: bool = True
    control: bool = False


@dataclass(frozen=True)
class Ticket:
    """A request without its tensors. Times are seconds on the caller's clock.

    `id` is unique among tickets in flight. `previews` holds the steps after which an unfinished picture is due (1 is
    the first). After `deadline` (None: never) the picture is worthless. Tickets of equal `key` ask for the same
    picture, so the key covers all that changes it: prompt, seed, size, steps, control and strength.
    """

    id: str
    shape: Shape
    steps: int
    min_steps: int
    arrived: float
    key: Hashable
    previews: frozenset[int] = frozenset()
    deadline: float | None = None
    priority: Priority = "interactive"
    encode: Preparation = Preparation()


@dataclass(frozen=True)
class Work:
    """One call of the pipeline, for the requests named by `ids`: all of one shape class.

    text, control: encode one request's prompt or control image. denoise: one step of each. preview: a picture of the
    predicted x0 of each. decode: the final picture of each, from the predicted x0 of the last step that was taken.
    """

    stage: Stage
    shape: Shape
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """The picture computed under `id` is ready after `steps` steps; everybody in `audience` waits for it."""

    id: str
    audience: tuple[str, ...]
    steps: int


class Refused(Exception):
    """A ticket is not admitted; the same would probably be in `retry_after` seconds."""

    def __init__(self, reason: RefusalReason, retry_after: float) -> None:
        super().__init__(f"{reason}; try again in {retry_after:.3f} s")
        self.reason: RefusalReason = reason
        self.retry_after = retry_after
