"""Log lines: for people, or as JSON, one object a line. The request's id is in every line written on its behalf."""

import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

# What the task that writes is about, set by `server.tracing`: request_id, trace_id, span_id.
context: ContextVar[dict[str, str]] = ContextVar("log_context")
# What the request's line in the access log will say besides, once it has ended.
facts: ContextVar[dict[str, Any]] = ContextVar("facts")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "context", "color_message"}


def note(**more: Any) -> None:
    """Say more about the request that is being answered, in its line of the access log."""
    facts.get({}).update(more)


def configure(form: Literal["text", "json"], level: str) -> None:
    """Send the log to standard error in one of two forms. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_context)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Chatty ones, whose lines at this level are not about the server's own work.
    for name in ("asyncio", "websockets", "PIL", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _add_context(record: logging.LogRecord) -> bool:
    record.context = context.get({})
    return True


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What the call passed as `extra`, and what it was about."""
    about: dict[str, Any] = dict(getattr(record, "context", {}))
    return about | {key: value for key, value in vars(record).items() if key not in _STANDARD}


class TextFormatter(logging.Formatter):
    """`INFO server.access: POST /v1/images/generations status=200 seconds=0.0612 request_id=…`."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        pairs = (f" {key}={_quoted(value)}" for key, value in _flat(_extra(record)))
        return _one_line(super().formatMessage(record)) + "".join(pairs)


def _flat(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Nested facts as `stages.denoise`."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _quoted(value: Any) -> str:
    """Values with spaces, quotes or control characters in quotes, so that no value can pretend to be two."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    plain = text.isprintable() and text and not any(character in ' "=' for character in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _one_line(text: str) -> str:
    """Control characters as escapes: what a client sent must not begin a line of its own."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339), level, logger, message, and whatever else is known."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)
