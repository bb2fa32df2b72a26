"""What can be asked of the engine, and the limits within which it may be asked."""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from engine.manifest import Manifest, Size
from engine.noise import MAX_SEED

MAX_PROMPT_CHARACTERS = 1000
MAX_STRENGTH = 2.0

MAX_TIMEOUT = 600.0  # seconds

ControlKind = Literal["edges", "picture"]
Priority = Literal["interactive", "batch"]


class InvalidRequest(ValueError):
    """A request is refused before any work: which field, its limit in words, and what was wrong."""

    def __init__(self, field: str, limit: str, message: str) -> None:
        super().__init__(f"{field} {message}; allowed: {limit}")
        self.field = field
        self.limit = limit
        self.message = message


@dataclass(frozen=True, eq=False)
class GenerateRequest:
    """One picture. Absent numbers take the bundle's defaults.

    `control` is uint8 [height, width, 3]: an edge map (white lines on black), or a picture whose edges are wanted.
    `min_steps` (absent: `steps`) is how few steps will do when time is short. `timeout` is in seconds from submission:
    later, the picture is worthless. `previews` is how many unfinished pictures to show, spread over the steps.
    """

    prompt: str
    seed: int = 0
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    control: NDArray[np.uint8] | None = None
    control_kind: ControlKind = "edges"
    strength: float = 1.0
    min_steps: int | None = None
    priority: Priority = "interactive"
    timeout: float | None = None
    previews: int = 0


@dataclass(frozen=True, eq=False)
class Job:
    """A request that was found valid, with every default filled in."""

    prompt: str
    seed: int
    steps: int
    size: Size
    control: NDArray[np.uint8] | None
    control_kind: ControlKind
    strength: float
    min_steps: int
    priority: Priority
    timeout: float | None
    previews: int

    @property
    def preview_steps(self) -> frozenset[int]:
        """After which steps (1 is the first) an unfinished picture is shown: spread evenly, never the last."""
        return frozenset(round(i * self.steps / (self.previews + 1)) or 1 for i in range(1, self.previews + 1))


def shape_class(size: Size, controlled: bool) -> tuple[int, int, bool]:
    """Jobs of one class may share a call. Plain numbers, because the scheduler looks costs up by it all the time."""
    return size.width, size.height, controlled


def fingerprint(job: Job) -> Hashable:
    """Equal for jobs that ask for the same events: all but the priority and the timeout counts."""
    if job.control is None:
        return settings(job)
    return (*settings(job), hashlib.sha256(np.ascontiguousarray(job.control).data).digest())


def settings(job: Job) -> tuple[Hashable, ...]:
    """What goes into the fingerprint besides the control image."""
    common = (job.prompt, job.seed, job.steps, job.min_steps, job.size, job.previews)
    return common if job.control is None else (*common, job.control_kind, job.strength)


def validate(request: GenerateRequest, manifest: Manifest) -> Job:
    """Check a request against the bundle's limits.

    Raises:
        InvalidRequest: the first field outside its limits.
    """
    _check_prompt(request.prompt)
    seed = _integer("seed", request.seed, 0, MAX_SEED)
    limits = manifest.steps
    steps = limits.default if request.steps is None else _integer("steps", request.steps, limits.min, limits.max)
    size = _check_size(request.width, request.height, manifest)
    if request.control is not None:
        _check_control(request.control, request.control_kind, size, manifest)
    strength = request.strength
    # Written so that NaN fails too.
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0.0 <= strength <= MAX_STRENGTH:
        raise InvalidRequest("strength", f"0 to {MAX_STRENGTH:g}", f"is {strength!r}")
    least = steps if request.min_steps is None else _integer("min_steps", request.min_steps, limits.min, steps)
    if request.priority not in get_args(Priority):
        raise InvalidRequest("priority", "'interactive' or 'batch'", f"is {request.priority!r}")
    return Job(
        prompt=request.prompt,
        seed=seed,
        steps=steps,
        size=size,
        # At strength 0 the branch adds nothing, so it is not run: the picture is the plain one to the last bit.
        control=request.control if strength else None,
        control_kind=request.control_kind,
        strength=float(strength),
        min_steps=least,
        priority=request.priority,
        timeout=_check_timeout(request.timeout),
        previews=_integer("previews", request.previews, 0, steps - 1),
    )


def _check_prompt(prompt: Any) -> None:
    limit = f"1 to {MAX_PROMPT_CHARACTERS} characters of Unicode text without NUL"
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt", limit, "is not text")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest("prompt", limit, f"has {len(prompt)} characters")
    if not prompt.strip():
        raise InvalidRequest("prompt", limit, "is empty")
    if "\0" in prompt:
        raise InvalidRequest("prompt", limit, "holds a NUL character")
    # JSON can carry half of a surrogate pair, which no tokenizer can encode.
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise InvalidRequest("prompt", limit, "holds an unpaired surrogate")


def _integer(field: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(field, f"an integer from {low} to {high}", f"is {value!r}")
    return value


def _check_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0.0 < timeout <= MAX_TIMEOUT:
        raise InvalidRequest("timeout", f"above 0 to {MAX_TIMEOUT:g} seconds", f"is {timeout!r}")
    return float(timeout)


def _check_size(width: int | None, height: int | None, manifest: Manifest) -> Size:
    default = manifest.images.default
    wanted = (default.width if width is None else width, default.height if height is None else height)
    for size in manifest.images.allowed:
        if (size.width, size.height) == wanted:
            return size
    limit = "one of " + ", ".join(f"{size.width}x{size.height}" for size in manifest.images.allowed)
    raise InvalidRequest("size", limit, f"is {wanted[0]}x{wanted[1]}")


def _check_control(control: Any, kind: Any, size: Size, manifest: Manifest) -> None:
    if not manifest.controllable:
        raise InvalidRequest("control", "none: this model follows no control image", "was given")
    shape = (size.height, size.width, 3)
    if not isinstance(control, np.ndarray) or control.dtype != np.uint8 or control.shape != shape:
        got = f"{control.dtype} {list(control.shape)}" if isinstance(control, np.ndarray) else type(control).__name__
        raise InvalidRequest("control", f"uint8 {list(shape)}", f"is {got}")
    if kind not in ("edges", "picture"):
        raise InvalidRequest("control_kind", "'edges' or 'picture'", f"is {kind!r}")
