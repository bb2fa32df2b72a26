"""Options that are settings: made from `Settings`, so that their names, meanings and defaults stand once."""

import argparse
import dataclasses
from pathlib import Path
from typing import get_type_hints

from server.settings import Settings

# What every command that runs the model has; `serve` has all settings.
ENGINE = ("bundle", "backend", "precision", "devices", "threads", "cache")


def add(parser: argparse.ArgumentParser, names: tuple[str, ...] | None = None) -> None:
    """Add `--config` and an option for each of the named settings, or for all."""
    group = parser.add_argument_group(
        "settings", "also PIXART_* variables, or lines of the TOML file; docs/operations.md"
    )
    group.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings")
    types = get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        if names is not None and field.name not in names:
            continue
        rules = field.metadata
        default = rules["shown"] or field.default
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            metavar="|".join(rules["choices"]) or _metavar(field.name, types[field.name]),
            help=f"{rules['meaning']} ({_words(default)})".replace("%", "%%"),
        )


def settings(options: argparse.Namespace) -> Settings:
    """The settings that the command line, the environment and the file ask for.

    Raises:
        SettingsError: see `Settings.load`.
    """
    return Settings.load(vars(options))


def _metavar(name: str, kind: object) -> str:
    if name.endswith("_seconds"):
        return "SECONDS"
    return {int: "N", float: "NUMBER", bool: "BOOL", str: "TEXT"}.get(kind, "PATH" if "Path" in str(kind) else "A,B")  # type: ignore[call-overload, no-any-return]


def _words(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(default) or "none"
    return "none" if default is None else str(default).strip("`")
