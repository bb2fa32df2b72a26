"""An engine file and the record beside it, which says what the engine is and by which it is accepted or refused."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from engine.profiles import Range

RECORD_FORMAT = 1
MAX_RECORD_BYTES = 1024 * 1024


class EngineRefused(Exception):
    """An engine does not fit; the message says in what."""


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on. `targets` are compute capabilities such as `sm80`; `graph` is the digest of the
    module's graph and weights; `profiles` are ranges by symbol, in the engine's own order."""

    package: str
    version: str
    targets: tuple[str, ...]
    graph: str
    precision: str
    profiles: tuple[Mapping[str, Range], ...]

    def digest(self) -> str:
        """SHA-256 of the key."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class EngineRecord:
    """An engine's key, the hash and size of its file, and what its compilation took and found.

    Bytes of memory are the package's own figures, for the largest profile, and absent if it told none.
    """

    key: EngineKey
    sha256: str
    bytes: int
    seconds: float
    activation_bytes: int | None = None
    weight_bytes: int | None = None
    format: int = RECORD_FORMAT


class EngineStore:
    """Engines in one folder: `<module>-<package>-<precision>.engine`, each with a record `….json` beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, module: str, package: str, precision: str) -> Path:
        """Where that engine lies, if it was compiled."""
        return self.folder / f"{module}-{package}-{precision}.engine"

    def record(self, engine: Path) -> EngineRecord | None:
        """The record of an engine; None if there is none, or none that can be understood.

        Raises:
            EngineRefused: there is one that cannot be read.
        """
        path = _record_path(engine)
        try:
            with path.open("rb") as file:
                data = json.loads(file.read(MAX_RECORD_BYTES))
            return _parse(data)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        except OSError as error:
            raise EngineRefused(f"{path.name} cannot be read ({error.strerror})") from error

    def is_whole(self, engine: Path, record: EngineRecord) -> bool:
        """Whether the engine is the very file that the record describes."""
        try:
            with engine.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
        except OSError:
            return False

    def read(self, engine: Path, record: EngineRecord) -> bytes:
        """The engine's bytes, proved to be those that were written.

        Raises:
            EngineRefused: they are not.
        """
        try:
            content = engine.read_bytes()
        except OSError as error:
            raise EngineRefused(f"{engine.name} cannot be read ({error.strerror})") from error
        if len(content) != record.bytes or hashlib.sha256(content).hexdigest() != record.sha256:
            raise EngineRefused(f"{engine.name} is damaged")
        return content

    @contextmanager
    def writing(self, engine: Path) -> Iterator["EngineWriter"]:
        """Write an engine beside its place, and put it there only when it is complete and on the disk.

        Raises:
            OSError: the disk is full, or the folder cannot be written; nothing is left behind.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _replacing(engine) as file:
            writer = EngineWriter(file)
            yield writer
            if writer.record is None:
                raise ValueError("the engine's record was not set")
            # A record without its engine is refused by its hash; an engine without its record is not looked at.
            with suppress(FileNotFoundError):
                _record_path(engine).unlink()
        with _replacing(_record_path(engine)) as file:
            file.write(json.dumps(asdict(writer.record), indent=1).encode() + b"\n")


class EngineWriter:
    """Takes an engine's bytes in pieces, and at the end its `record`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.record: EngineRecord | None = None

    def write(self, piece: bytes | memoryview) -> int:
        """Append a piece; returns its length.

        Raises:
            OSError: the disk is full.
        """
        self._file.write(piece)
        self._hash.update(piece)
        self.bytes += len(piece)
        return len(piece)

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._hash.hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when it is complete and on the disk, and is gone if it never is.

    Whoever may read files of this process may read it: engines are served by another user than compiles them.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _record_path(engine: Path) -> Path:
    return engine.with_suffix(".json")


def _parse(data: Any) -> EngineRecord:
    if data["format"] != RECORD_FORMAT:
        raise ValueError(f"format {data['format']}")
    key = dict(data["key"])
    key["targets"] = tuple(key["targets"])
    key["profiles"] = tuple(
        {symbol: (int(low), int(usual), int(high)) for symbol, (low, usual, high) in profile.items()}
        for profile in key["profiles"]
    )
    known = {field.name for field in fields(EngineRecord)} - {"key"}
    return EngineRecord(key=EngineKey(**key), **{name: value for name, value in data.items() if name in known})
