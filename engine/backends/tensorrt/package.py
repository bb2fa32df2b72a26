"""The package that compiles and runs: `tensorrt` or `tensorrt_rtx`, imported when it is first asked for."""

import importlib
import logging
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from engine.backends.base import CompileError

PackageName = Literal["tensorrt", "tensorrt_rtx"]
INSTALL = {
    "tensorrt": "pip install tensorrt (from NVIDIA's own index; docs/compiling.md)",
    "tensorrt_rtx": "pip install 'pixart-delta-server[tensorrt]'",
}
MAX_ERRORS = 16  # kept for a message of ours; the log has them all
log = logging.getLogger(__name__)


@cache
def load_package(name: PackageName) -> Any:
    """Import the package.

    Raises:
        CompileError: it is not installed, or its libraries cannot be loaded; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise CompileError(f"{name} cannot be loaded ({error}); install it with: {INSTALL[name]}") from error


class Messages:
    """What the package said while it worked: errors for people, and lines that a listener picks figures from."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=MAX_ERRORS)
        self.listener: Callable[[str], None] | None = None

    def take(self, severity: str, text: str) -> None:
        """Note one message."""
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self.errors.append(text)
            log.error("%s", text)
        elif severity == "WARNING":
            log.debug("%s", text)
        if self.listener is not None:
            self.listener(text)

    def clear(self) -> None:
        """Forget the errors, before something new begins."""
        self.errors.clear()

    def reason(self) -> str:
        """The first error that is kept, in one line, for a message of ours."""
        return " ".join(self.errors[0].split())[:400] if self.errors else "it gives no reason"


@cache
def messages(name: PackageName) -> tuple[Any, Messages]:
    """The package's logger and where its messages go. There is one for the process: the package keeps the first."""
    trt = load_package(name)
    kept = Messages()

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            kept.take(severity.name, text)

    return Logger(), kept


def parse_targets(name: PackageName, targets: tuple[str, ...]) -> list[Any]:
    """The package's compute capabilities for names such as `sm80`; empty for the GPU of this machine.

    Raises:
        CompileError: the package cannot compile for an absent GPU, or not for this one.
    """
    trt = load_package(name)
    if not targets:
        return []
    if not hasattr(trt, "ComputeCapability"):
        raise CompileError(f"{name} compiles for the GPU of this machine alone; use tensorrt_rtx for --target")
    known = {key.lower(): value for key, value in vars(trt.ComputeCapability).items() if key.startswith("SM")}
    for target in targets:
        if target not in known:
            raise CompileError(f"target {target!r} is not one that {name} {trt.__version__} knows: {', '.join(known)}")
    return [known[target] for target in targets]
