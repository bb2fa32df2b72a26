"""Compiled modules on disk, each behind a hash of its own: a damaged or foreign file is dropped, never handed out."""

import hashlib
import logging
import mmap
import os
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_DIGEST_BYTES = 32


class BlobCache:
    """Files `<name>-<key>.blob` in one folder, readable by their owner alone: SHA-256 of the rest, then the rest.

    `kept` are those that were read (false) or written (true).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.kept: dict[Path, bool] = {}

    def path(self, name: str, parts: tuple[str, ...]) -> Path:
        """The file of what `parts` determine completely; `name` is there for people."""
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        return self._folder / f"{name}-{key}.blob"

    def read(self, path: Path) -> memoryview | None:
        """The stored bytes, or None if there are none or they are damaged (the file is then removed).

        They are mapped, not read, so that workers share them and memory can be had back from them. The mapping is
        private, hence writable; files here are replaced as a whole, so what is mapped stays as it is.
        """
        try:
            with path.open("rb") as file:
                content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("compiled module %s cannot be read (%s)", path, error.strerror)
            return None
        except ValueError:  # an empty file cannot be mapped
            content = memoryview(b"")
        body = content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != content[:_DIGEST_BYTES]:
            log.warning("compiled module %s is damaged; compiling anew", path)
            self.drop(path)
            return None
        self.kept[path] = False
        return body

    def write(self, path: Path, body: bytes) -> None:
        """Store, all or nothing. A cache that cannot be written costs time at the next start, not this one's life."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, temporary = tempfile.mkstemp(dir=self._folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(hashlib.sha256(body).digest())
                    file.write(body)
                os.replace(temporary, path)
                self.kept[path] = True
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            log.warning("compiled module %s cannot be kept (%s)", path, error.strerror)

    def drop(self, path: Path) -> None:
        """Remove a file that turned out to be useless."""
        self.kept.pop(path, None)
        with suppress(OSError):
            path.unlink()
