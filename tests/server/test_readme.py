"""The README's commands, as a reader runs them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def block(word: str) -> str:
    """The one block of commands that holds `word`."""
    (found,) = (text for text in BLOCKS if word in text)
    return str(found)


def run(script: str, folder: Path, **variables: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_curl(server: Any, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    run(block("curl").replace("http://127.0.0.1:8000", server.url), tmp_path, PATH=path)
    assert Image.open(tmp_path / "apple.png").size == (64, 64)


def test_generate(tiny_bundle: Path, tmp_path: Path) -> None:
    sketch = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(sketch).ellipse((60, 60, 240, 240), outline=0, width=5)
    sketch.save(tmp_path / "sketch.png")
    script = block("pixart generate").replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    run(script, tmp_path, PIXART_BUNDLE=str(tiny_bundle), PATH="/usr/bin:/bin")
    plain, controlled = (Image.open(tmp_path / f"{name}.png") for name in ("apple", "controlled"))
    assert plain.size == controlled.size and plain.tobytes() != controlled.tobytes()


def test_both_make_targets_exist_and_ci_runs_the_readmes_tests() -> None:
    assert block("make serve") == "make serve\n" and block("make test") == "make test\n"
    for target in ("serve", "test"):
        dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert dry.returncode == 0, dry.stderr
    assert "make test\n" in (ROOT / ".ci" / "run").read_text()


def test_links_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_an_old_python_is_named(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run(["make", "serve", "PYTHON="], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "no Python 3.11 or newer found" in done.stderr
