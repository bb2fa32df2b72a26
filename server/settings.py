"""What an operator may set, by environment variable or by command-line option of the same name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args

from engine.backends import Backend, BackendOptions, Precision, create, names

DEMO_BUNDLE = Path(__file__).resolve().parent.parent / "models" / "zoo" / "emoji"
PREFIX = "PIXART_"

# The whole numbers among the settings, and what they may be.
_RANGES = {
    "port": (0, 65535),
    "threads": (0, 1024),
    "queue": (1, 100_000),
    "max_body_bytes": (1024, 1 << 30),
    "max_control_pixels": (64 * 64, 1 << 28),
    "drain_seconds": (0, 3600),
}
_PATHS = ("bundle", "cache")


class SettingsError(ValueError):
    """A setting cannot be understood; the message names the variable."""


@dataclass(frozen=True)
class Settings:
    """Every field is also an environment variable: `queue` is PIXART_QUEUE."""

    bundle: Path = DEMO_BUNDLE
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    backend: str = "openvino"
    precision: Precision = "f32"
    threads: int = 0  # of the backend; 0: as many as it likes
    cache: Path | None = None  # keeps compiled modules between starts
    queue: int = 32  # requests that may wait or run; more are refused with 429
    max_body_bytes: int = 8 * 1024 * 1024
    max_control_pixels: int = 4096 * 4096
    drain_seconds: int = 20  # after SIGTERM, how long running requests may take

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise SettingsError(f"{PREFIX}{name.upper()}: {getattr(self, name)} is not between {low} and {high}")
        self._one_of("backend", names())
        self._one_of("precision", get_args(Precision))

    def _one_of(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            known = ", ".join(choices)
            raise SettingsError(f"{PREFIX}{name.upper()}: {getattr(self, name)!r} is not one of {known}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **options: Any) -> Self:
        """Read the PIXART_* variables; `options` that are not None (the command line's) win over them.

        Raises:
            SettingsError: a variable is malformed or out of range.
        """
        values = {name: value for name, value in options.items() if value is not None}
        for field in fields(cls):
            text = environment.get(PREFIX + field.name.upper())
            if text and field.name not in values:
                values[field.name] = _parse(field.name, text)
        return cls(**values)

    def create_backend(self) -> Backend:
        """The backend that these settings ask for.

        Raises:
            SettingsError: its runtime is not installed.
        """
        options = BackendOptions(precision=self.precision, threads=self.threads, cache=self.cache)
        try:
            return create(self.backend, options)
        except ImportError as error:
            raise SettingsError(f"{PREFIX}BACKEND: {self.backend} is not installed ({error})") from error


def _parse(name: str, text: str) -> str | int | Path:
    if name in _PATHS:
        return Path(text)
    if name not in _RANGES:
        return text
    try:
        return int(text)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}{name.upper()}: {text!r} is not a whole number") from error
