"""Open a bundle folder: read its manifest and prove that every file is the one that was exported."""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.manifest import FORMAT_VERSION, Manifest, ModuleName, ModuleSpec
from engine.manifest_checks import contradictions

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


class BundleError(Exception):
    """A bundle is refused. `where` names the file, or the field of the manifest."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem

    def __reduce__(self) -> tuple[type["BundleError"], tuple[str, str]]:
        """A worker process sends it to its server."""
        return BundleError, (self.where, self.problem)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: Path | str) -> "Bundle":
        """Read and verify the bundle in `folder`.

        Raises:
            BundleError: the manifest is missing, malformed, of a newer format, or names a path outside the folder;
                or a file is missing or differs from its recorded length or SHA-256.
        """
        root = Path(folder)
        if not root.is_dir():
            raise BundleError(str(folder), "is not a folder")
        manifest = _read_manifest(root / MANIFEST)
        _verify(root, manifest)
        return cls(root, manifest)

    def path(self, name: str) -> Path:
        """Where the file `name` of the manifest lies."""
        return self.folder / name

    def module(self, name: ModuleName) -> ModuleSpec:
        """The module's description.

        Raises:
            BundleError: the bundle has no such module.
        """
        try:
            return self.manifest.modules[name]
        except KeyError:
            raise BundleError(f"modules.{name}", "is not part of this bundle") from None

    def digest(self, name: ModuleName) -> str:
        """SHA-256 (hex) over the module's graph and all weights behind it: equal digests compute the same function."""
        spec = self.module(name)
        whole = hashlib.sha256()
        for path in (spec.graph, *spec.weights):
            whole.update(f"{path} {self.manifest.files[path].sha256}\n".encode())
        return whole.hexdigest()


def _read_manifest(path: Path) -> Manifest:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(MANIFEST, f"is larger than {MAX_MANIFEST_BYTES} bytes")
        text = path.read_bytes()
        data: Any = json.loads(text)
    except OSError as error:
        raise BundleError(MANIFEST, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(MANIFEST, f"is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise BundleError(MANIFEST, "is not a JSON object")
    version = data.get("format_version")
    # The version is judged first: a newer manifest would otherwise be blamed for its new fields.
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST}: format_version", f"is {version}; this program reads up to {FORMAT_VERSION}, so update it"
        )
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise BundleError(f"{MANIFEST}: {field}" if field else MANIFEST, problem) from error
    for field, problem in contradictions(manifest):
        raise BundleError(f"{MANIFEST}: {field}", problem)
    return manifest


def _verify(root: Path, manifest: Manifest) -> None:
    """Compare every file's length (cheap, so all of them first) and then its hash, in threads."""
    home = root.resolve()
    for name, entry in manifest.files.items():
        path = root / name
        if not path.is_file():
            raise BundleError(name, "is missing")
        if not path.resolve().is_relative_to(home):
            raise BundleError(name, "is a link that leaves the bundle's folder")
        if (size := path.stat().st_size) != entry.bytes:
            raise BundleError(name, f"has {size} bytes instead of {entry.bytes}")
    # Large files first, so that the last thread to finish did not start on the largest one.
    names = sorted(manifest.files, key=lambda name: -manifest.files[name].bytes)
    for name, digest in zip(names, _hashes([root / name for name in names]), strict=True):
        if digest != manifest.files[name].sha256:
            raise BundleError(name, "was changed: its SHA-256 differs from the manifest's")


def _hashes(paths: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(_sha256, paths))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(path.name, f"cannot be read ({error.strerror})") from error
