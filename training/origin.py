"""What a run's weights come from, so that a checkpoint is never taken for that of another run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, uint8

Origin = Mapping[str, str]
"""All that decides a run's weights, by names for people: tables of its recipe, and digests of weights and data."""

# How often a loop leaves something behind changes no weight.
HABITS = ("save_every", "sample_every")


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A digest of tensors on the CPU with their names, in whatever order they come."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def tables(recipe: Mapping[str, Any], *names: str) -> dict[str, str]:
    """These tables of a recipe."""
    found = {}
    for name in names:
        table = dict(recipe[name])
        if "loop" in table:
            table["loop"] = {key: value for key, value in table["loop"].items() if key not in HABITS}
        found[f"[{name}]"] = json.dumps(table, sort_keys=True)
    return found


def refuse_another(folder: Path, saved: Origin | None, origin: Origin) -> None:
    """End the command if the checkpoint in `folder`, which says that it comes from `saved`, is not of this run.

    Raises:
        SystemExit: what is different, or that the checkpoint does not say what it comes from.
    """
    ways = "give the recipe another name, name another --runs, or remove that folder to train anew"
    if saved is None:
        raise SystemExit(
            f"error: the checkpoint in {folder} does not say what it was trained from: "
            f"it was taken over from a bundle, or is of an earlier version; {ways}"
        )
    if other := [name for name in sorted({*saved, *origin}) if saved.get(name) != origin.get(name)]:
        raise SystemExit(f"error: the checkpoint in {folder} is of another run, with other {', '.join(other)}; {ways}")
