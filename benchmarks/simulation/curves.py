"""Tables of stage costs as JSON files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.ticket import Shape, Stage

Table = dict[tuple[Stage, Shape, int], float]


def save(path: Path, table: Mapping[tuple[Stage, Shape, int], float], about: Mapping[str, Any]) -> None:
    """Write a table whose shape classes are (side in pixels, controlled), and what it was measured with."""
    rows = [
        {"stage": stage, "shape": shape, "batch": batch, "seconds": round(seconds, 7)}
        for (stage, shape, batch), seconds in table.items()
    ]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    path.write_text(f'{{\n "about": {json.dumps(about)},\n "costs": [\n  {lines}\n ]\n}}\n')


def load(path: Path) -> Table:
    """Read it."""
    rows = json.loads(path.read_text())["costs"]
    return {
        (row["stage"], tuple(row["shape"]) if row["shape"] else None, row["batch"]): float(row["seconds"])
        for row in rows
    }
