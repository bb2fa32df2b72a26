"""What a tracer is, whoever exports its spans."""

from contextlib import AbstractContextManager
from typing import Any, Protocol


class Span(Protocol):
    """One request in a trace."""

    def ids(self) -> dict[str, str]:
        """trace_id and span_id."""
        ...

    def end(self, status: int, facts: dict[str, Any]) -> None:
        """What came of it."""
        ...


class Tracer(Protocol):
    """Begins spans; `server.telemetry` has the one that exports them."""

    def start(self, name: str, route: str, method: str, headers: dict[str, str]) -> AbstractContextManager[Span]:
        """A span around one request."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...
