"""What the container image installs: a wheel that holds all that serving needs."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel made from what the Dockerfile copies, and from nothing else."""
    source = tmp_path_factory.mktemp("source")
    copied = re.findall(r"^COPY ((?!--from).*) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for name in " ".join(copied).split():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(source)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_the_demo_bundle_and_the_page(names: set[str]) -> None:
    bundle = ROOT / "models" / "zoo" / "emoji"
    files = {path.relative_to(ROOT).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert "models/zoo/emoji/manifest.json" in files
    assert files <= names
    assert "server/static/index.html" in names


def test_it_holds_the_serving_packages_and_nothing_else(names: set[str]) -> None:
    folders = {name.partition("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"engine", "models", "server"}
