"""docs/api.md: its commands run as they stand, and its tables name what there is."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

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


def test_every_field_and_code_has_its_row() -> None:
    fields = {name for name in (*ImageRequest.model_fields, *EditRequest.model_fields) if name != "input_fidelity"}
    fields |= {f"control.{name}" for name in Control.model_fields}
    assert [name for name in sorted(fields - {"control"}) if f"`{name}`" not in TEXT] == []
    source = "".join(path.read_text() for path in (ROOT / "server").glob("*.py"))
    codes = set(re.findall(r'code="(\w+)"', source))
    assert [code for code in sorted(codes) if f"`{code}`" not in TEXT] == []
