"""Training recipes: one TOML file with a table for the data and one for each stage."""

import argparse
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def parse(kind: type[T], table: dict[str, Any], where: str) -> T:
    """Build the dataclass `kind` from a TOML table.

    Raises:
        ValueError: a key is unknown, or one without a default is missing; the message names it.
    """
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if surplus := sorted(set(table) - names):
        raise ValueError(f"{where}: unknown key {surplus[0]!r}; known: {', '.join(sorted(names))}")
    values: dict[str, Any] = {}
    for name, value in table.items():
        if is_dataclass(hints[name]):
            value = parse(hints[name], value, f"{where}.{name}")  # type: ignore[arg-type]
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """Read a recipe."""
    with path.open("rb") as file:
        return tomllib.load(file)


def command_line(description: str) -> argparse.ArgumentParser:
    """The options that every stage's command has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, required=True, help="recipe, e.g. training/configs/emoji.toml")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where checkpoints, logs and samples go")
    return parser
