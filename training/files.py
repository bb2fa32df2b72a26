"""Files that are there whole or not at all, whenever their writer is killed."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; when the block ends well, the file takes the place of the old one, if any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.partial")
    yield scratch
    os.replace(scratch, path)


def save_whole(state: Mapping[str, Any], path: Path) -> None:
    """Write a dictionary of tensors and plain values so that a kill leaves the old file or the new one."""
    with written_whole(path) as scratch:
        torch.save(dict(state), scratch)
