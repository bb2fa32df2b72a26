"""docs/api.md: its commands run as they stand, and its tables name what there is."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from engine.client import RefusalReason
from server.errors import CODES
from server.schemas import Control, EditRequest, ImageRequest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_run(server: Any, tmp_path: Path) -> None:
    commands = [block.replace("http://127.0.0.1:8000", server.url) for block in blocks("bash")]
    assert len(commands) == 5 and all(server.url in command for command in commands)
    answers = [run(["bash", "-euo", "pipefail", "-c", command], tmp_path) for command in commands]
    assert {Image.open(tmp_path / name).format for name in ("apple.png", "green.png")} == {"PNG"}
    assert '"output_format":"webp"' in answers[1]
    assert answers[3].count("event: image_generation.") == 3
    assert '"limits"' in answers[4]
    (script,) = blocks("python")
    script = script.replace("http://127.0.0.1:8000", server.url)
    assert run([sys.executable, "-c", script], tmp_path).split() == ["image_generation.partial_image"] * 2 + [
        "image_generation.completed"
    ]


def test_every_field_has_its_row() -> None:
    fields = {name for name in (*ImageRequest.model_fields, *EditRequest.model_fields) if name != "input_fidelity"}
    fields |= {f"control.{name}" for name in Control.model_fields}
    assert [name for name in sorted(fields - {"control"}) if f"`{name}`" not in TEXT] == []


def codes(tree: ast.Module) -> Iterator[str]:
    """Texts that a module passes as `code`, by that name or in its place."""
    places: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "code" in (names := [each.arg for each in node.args.args]):
            places[node.name] = names.index("code") - (names[0] == "self")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = [word.value for word in node.keywords if word.arg == "code"]
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given += node.args[places[name] :][:1] if name in places else []
        yield from (each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str))


def test_the_codes_are_those_that_are_used() -> None:
    rows = re.findall(r"^\| [45]\d\d \| (.*?) \|", TEXT, re.MULTILINE)
    documented = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    used = {*CODES.values(), *get_args(RefusalReason)}
    for path in (ROOT / "server").rglob("*.py"):
        used.update(codes(ast.parse(path.read_text())))
    assert used == documented
    assert {"head_too_large", "message_too_large", "rate_limit_exceeded"} <= used
