"""What an operator may set: by option, by environment variable, or in a TOML file; else the default. In this order."""

# ruff: noqa: RUF009 (`setting` returns a dataclass field, which is what this rule asks for)

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from engine.backends import Backend, BackendOptions, Precision, create, names
from engine.options import spread

DEMO_BUNDLE = Path(__file__).resolve().parent.parent / "models" / "zoo" / "emoji"
PREFIX = "PIXART_"
CONFIG = PREFIX + "CONFIG"

# As browsers send them. A port is no part of a host's name here; in an origin the scheme's own port is left out.
_HOST = re.compile(r"\*|[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]"), "a host's name without scheme or port, or *"
_ORIGIN = (
    re.compile(r"\*|null|(?!http://[^/]*:80$|https://[^/]*:443$)[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+"),
    "an origin as browsers send it, such as https://app.example.com (in lower case, without path or slash), or *",
)
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class SettingsError(ValueError):
    """A setting cannot be understood; the message names the variable, the option or the file's key."""


def default_cache() -> Path:
    """Where programs of one user keep what can be made anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pixart-delta"


def setting(
    default: Any,
    meaning: str,
    low: float = 0,
    high: float = 0,
    *,
    choices: tuple[str, ...] = (),
    each: tuple[re.Pattern[str], str] | None = None,
    shown: str = "",
) -> Any:
    """A field: its meaning for the documentation; numbers are held to `low` and `high`, texts to `choices`.

    `each`: the form of a list's entries, and its name.

    `shown` stands in the documentation for a default that differs between machines.
    """
    metadata = {"meaning": meaning, "low": low, "high": high, "choices": choices, "each": each, "shown": shown}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Every field is also a variable and an option: `queue` is PIXART_QUEUE and --queue. Times are in seconds."""

    bundle: Path = setting(DEMO_BUNDLE, "Folder of the bundle to serve.", shown="the demo bundle")
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", 0, 65535)
    backend: str = setting("openvino", "What runs the graphs, if it is installed.", choices=names())
    precision: Precision = setting(
        "auto",
        "Arithmetic. `auto` is bf16 on processors that have it, f16 in TensorRT, else f32.",
        choices=get_args(Precision),
    )
    threads: int = setting(
        0, "Threads of the backend; 0 lets it take every core. In a container, set the container's share.", 0, 1024
    )
    devices: tuple[str, ...] = setting(
        (),
        "Devices to run on, as the backend names them: `CUDA:0,CUDA:1` or `GPU.1`; each has workers of its own. "
        "Without one, OpenVINO and ONNX Runtime take the CPU, TensorRT the first GPU.",
    )
    workers: int = setting(
        1,
        "Processes for each device that hold the model and make pictures; they share the cores if `threads` is 0.",
        1,
        256,
    )
    cache: Path | None = setting(
        default_cache,
        "Folder that keeps compiled modules between starts; `none` compiles at each start.",
        shown="`~/.cache/pixart-delta`",
    )
    queue: int = setting(32, "Pictures that may wait or be in the making; more get 429.", 1, 100_000)
    drain_seconds: int = setting(20, "How long running requests may take after SIGTERM.", 0, 3600)
    max_connections: int = setting(1000, "Open connections; more get 503.", 1, 1_000_000)
    keep_alive_seconds: int = setting(65, "How long a connection may wait for its next request.", 1, 3600)
    head_seconds: float = setting(10.0, "How long a client may take to send a request's head; then 408.", 0.1, 3600)
    body_seconds: float = setting(60.0, "How long a client may take to send a request's body; then 408.", 0.1, 3600)
    stall_seconds: float = setting(
        60.0, "How long a client may read nothing of its answer; then it is cut off.", 0.1, 3600
    )
    max_body_bytes: int = setting(8 * 1024 * 1024, "Largest request body; a larger one gets 413.", 1024, 1 << 30)
    max_control_pixels: int = setting(
        4096 * 4096, "Largest control image, judged before it is decoded.", 64 * 64, 1 << 28
    )
    api_keys: Path | None = setting(
        None, "File of API keys that `pixart keys` writes; without one, everybody is served."
    )
    public_paths: tuple[str, ...] = setting(
        ("/", "/static/", "/docs", "/openapi.json", "/healthz", "/readyz"),
        "Paths that need no API key; one that ends in `/` includes what is below it, save `/` itself.",
    )
    allowed_origins: tuple[str, ...] = setting(
        (), "Origins of web pages that may use the server besides its own page; `*` admits all.", each=_ORIGIN
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Names, without port, by which clients may call the server, besides `host` and `localhost`; `*` is any. "
        "Without one, any; but only those two if `host` is a loopback address.",
        each=_HOST,
    )
    content_filter: float = setting(
        0.0, "Score from which pictures are withheld as unsafe; 0 is off. Needs the extra `filter`.", 0, 1
    )
    realtime_sessions: int = setting(800, "Open real-time sessions; more are closed with 4429.", 0, 1_000_000)
    realtime_message_bytes: int = setting(
        1024 * 1024, "Largest real-time message, so also the largest control image in one.", 1024, 1 << 28
    )
    realtime_messages_per_second: int = setting(
        120, "Messages of one real-time session; faster ones are read more slowly.", 1, 100_000
    )
    realtime_idle_seconds: int = setting(300, "How long a real-time client may send nothing; then 4408.", 1, 86_400)
    realtime_stall_seconds: int = setting(10, "How long a real-time client may read nothing; then 4408.", 1, 3600)
    realtime_resume_seconds: int = setting(
        600, "How long the settings of a closed real-time session are kept for its client.", 0, 86_400
    )
    log_format: Literal["text", "json"] = setting("text", "Lines for people, or JSON lines.", choices=("text", "json"))
    log_level: str = setting("info", "The least level that is logged.", choices=("debug", "info", "warning", "error"))
    log_prompts: bool = setting(False, "Whether prompts may appear in the log.")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name), variable(field.name))

    @classmethod
    def load(cls, options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Self:
        """Options that are not None win over PIXART_* variables, and those over the file `config` or PIXART_CONFIG.

        Raises:
            SettingsError: a value is malformed or out of range, or the file cannot be read or has an unknown key.
        """
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        if config := options.get("config") or environment.get(CONFIG):
            values |= _read(Path(config), cls)
            sources = {name: f"{config}: {name}" for name in values}
        types = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if text := environment.get(variable(field.name)):
                sources[field.name] = name = variable(field.name)
                values[field.name] = parse(types[field.name], text, name)
            if (value := options.get(field.name)) is not None:
                sources[field.name] = name = "--" + field.name.replace("_", "-")
                values[field.name] = parse(types[field.name], value, name) if isinstance(value, str) else value
            if field.name in values:
                _check(field, values[field.name], sources[field.name])
        return cls(**values)

    @classmethod
    def unknown(cls, environment: Mapping[str, str] = os.environ) -> list[str]:
        """PIXART_* variables that mean nothing here: misspelt, perhaps, or made by a container's links."""
        known = {variable(field.name) for field in dataclasses.fields(cls)} | {CONFIG}
        return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)

    def create_backend(self) -> Backend:
        """The backend that these settings ask for.

        Raises:
            SettingsError: its runtime is not installed, or lacks the device or the precision.
        """
        return _create(self.backend, self._options())

    def backends(self) -> list[Callable[[], Backend]]:
        """What each worker calls to make its backend; they raise as `create_backend` does, and can be pickled."""
        return [
            partial(_create, self.backend, options) for options in spread(self._options(), self.devices, self.workers)
        ]

    def _options(self) -> BackendOptions:
        options = BackendOptions(precision=self.precision, threads=self.threads, cache=self.cache)
        return dataclasses.replace(options, device=self.devices[0]) if self.devices else options


def _create(name: str, options: BackendOptions) -> Backend:
    try:
        return create(name, options)
    except ImportError as error:
        raise SettingsError(f"{PREFIX}BACKEND: {name} is not installed ({error})") from error
    except ValueError as error:
        raise SettingsError(f"{PREFIX}BACKEND {name}: {error}") from error


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def _check(field: "dataclasses.Field[Any]", value: Any, name: str) -> None:
    """Hold a value to its field's rules; `name` says whose it is."""
    rules = field.metadata
    if rules["choices"] and value not in rules["choices"]:
        raise SettingsError(f"{name}: {value!r} is not one of {', '.join(rules['choices'])}")
    if rules["each"]:
        pattern, form = rules["each"]
        if wrong := next((part for part in value if not pattern.fullmatch(part)), None):
            raise SettingsError(f"{name}: {wrong!r} is not {form}")
    # Written so that NaN fails too.
    if isinstance(value, int | float) and rules["high"] and not rules["low"] <= value <= rules["high"]:
        raise SettingsError(f"{name}: {value} is not between {rules['low']} and {rules['high']}")


def parse(kind: Any, text: str, name: str) -> Any:
    """A setting's value from text; lists are separated by commas.

    Raises:
        SettingsError: the text is no such value; `name` says whose.
    """
    kind, optional = _plain(kind)
    if optional and text == "none":
        return None
    if kind is bool:
        if text.lower() not in (*_ON, *_OFF):
            raise SettingsError(f"{name}: {text!r} is neither true nor false")
        return text.lower() in _ON
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            raise SettingsError(f"{name}: {text!r} is not a {'whole ' if kind is int else ''}number") from error
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return Path(text).expanduser() if kind is Path else text


def _plain(kind: Any) -> tuple[Any, bool]:
    """A field's type without its None, and whether it has one."""
    if get_origin(kind) is UnionType:
        return next(part for part in get_args(kind) if part is not type(None)), True
    return kind, False


def _read(path: Path, settings: type[Settings]) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    types = get_type_hints(settings)
    if surplus := sorted(table.keys() - types.keys()):
        raise SettingsError(f"{path}: {surplus[0]} is not a setting")
    return {key: _from_toml(types[key], value, f"{path}: {key}") for key, value in table.items()}


def _from_toml(kind: Any, value: Any, name: str) -> Any:
    """TOML has types of its own: a number in quotes is a mistake that is better named."""
    plain, _ = _plain(kind)
    if get_origin(plain) is tuple:
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return tuple(value)
        raise SettingsError(f"{name}: {value!r} is not a list of texts")
    wanted = {bool: (bool,), int: (int,), float: (int, float)}.get(plain, (str,))
    if not isinstance(value, wanted) or (isinstance(value, bool) and plain is not bool):
        raise SettingsError(f"{name}: {value!r} is not a {'text' if str in wanted else plain.__name__}")
    return parse(kind, value, name) if isinstance(value, str) else value


def table() -> list[str]:
    """The rows of the table of settings in docs/operations.md."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Settings):
        rules = field.metadata
        default = rules["shown"] or _shown(field.default)
        limits = ", ".join(f"`{choice}`" for choice in rules["choices"])
        if rules["high"]:
            limits = f"{rules['low']} to {rules['high']}"
        rows.append(f"| `{field.name}` | {default} | {rules['meaning']}{f' ({limits})' if limits else ''} |")
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value) or "none"
    return "none" if value is None else f"`{value}`"
