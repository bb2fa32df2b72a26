"""What the packages import is what `pyproject.toml` says that they need."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("engine", "models", "server", "training")
# NVIDIA's installation guide says how to get it, which is not by a package of this name alone.
BY_HAND = {"tensorrt"}


def imported() -> set[str]:
    """Top-level names of modules that are neither ours nor Python's."""

    def names(tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module

    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = {name.partition(".")[0] for path in paths for name in names(ast.parse(path.read_text()))}
    return found - {*PACKAGES, *sys.stdlib_module_names, *BY_HAND}


def declared() -> dict[str, str]:
    """Names, as PEP 503 writes them, and pinned versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pins = (re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", pin[1]).lower(): pin[2] for pin in pins if pin}


@pytest.fixture(scope="module")
def distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@pytest.mark.parametrize("name", sorted(imported()))
def test_what_is_imported_is_declared_and_pinned(name: str, distributions: Mapping[str, list[str]]) -> None:
    providers = [re.sub(r"[-_.]+", "-", each).lower() for each in distributions.get(name, [name])]
    pins = declared()
    ours = [provider for provider in providers if provider in pins]
    assert ours, f"{name} comes from {providers}, which pyproject.toml does not name"
    assert all(version(provider).partition("+")[0] == pins[provider] for provider in ours)
