"""The bundle that another is made from: its manifest, and proof that every file is the one that was exported.

The engine's loader proves more, but `models` stands without the engine.
"""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from models.config import PixArtConfig, from_json


def read_bundle(folder: Path) -> tuple[dict[str, Any], PixArtConfig, tuple[int, int]]:
    """Manifest, configuration and default image size (width, height) of the bundle in `folder`.

    Raises:
        ValueError: it is no bundle; a file's name leaves the folder, or the file is missing or was changed.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        config = from_json(manifest["model"])
        size = manifest["images"]["default"]["width"], manifest["images"]["default"]["height"]
        hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        used = [name for module in manifest["modules"].values() for name in (module["graph"], *module["weights"])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is not a bundle ({type(error).__name__}: {error})") from error
    for name in ("tokenizer.json", *used):
        if name not in hashes:
            raise ValueError(f"{folder} is not a bundle ({name!r} is not among its files)")
    for name, sha256 in hashes.items():
        _check(folder, name, sha256)
    return manifest, config, size


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(folder: Path, name: str, sha256: str) -> None:
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or str(pure) != name:
        raise ValueError(f"{folder}: {name!r} is not a plain path inside the bundle")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} is a link that leaves the bundle's folder")
    if sha256_of(path) != sha256:
        raise ValueError(f"{path} was changed: its SHA-256 differs from the manifest's")
