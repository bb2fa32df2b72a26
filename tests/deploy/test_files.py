"""The files that operators start from are well-formed, and speak of settings that exist."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from server.settings import CONFIG, PREFIX, Settings, variable

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command", [["hadolint", "Dockerfile"], ["kubernetes-validate", "--strict", "deploy/kubernetes.yaml"]]
)
def test_linter(command: list[str]) -> None:
    done = subprocess.run(
        [str(TOOLS / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_builds_the_repositorys_dockerfile() -> None:
    folder = ROOT / "deploy"
    (service,) = yaml.safe_load((folder / "compose.yaml").read_text())["services"].values()
    assert (folder / service["build"] / "Dockerfile").is_file()


@pytest.mark.parametrize("name", ["Dockerfile", "deploy/compose.yaml", "deploy/kubernetes.yaml", "docs/operations.md"])
def test_settings_exist(name: str) -> None:
    known = {CONFIG, *(variable(field.name) for field in fields(Settings))}
    compose_only = {"PIXART_BUNDLE_DIR"}
    ours = set(re.findall(rf"(?<!set ){PREFIX}[A-Z_]+", (ROOT / name).read_text()))
    assert ours <= known | compose_only
