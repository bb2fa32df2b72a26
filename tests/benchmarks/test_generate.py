import json
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import has_bf16
from tests.export.tiny import tiny_bundle


def test_prints_a_row_for_each_contender_and_writes_every_value(tmp_path: Path) -> None:
    """Also proves that engine and peer run the same model: the command refuses to time different pictures."""
    output = tmp_path / "times.json"
    command = [sys.executable, "-m", "benchmarks.generate", "--bundle", str(tiny_bundle()[1]), "--rounds", "2"]
    done = subprocess.run([*command, "--json", str(output)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| engine", "| diffusers"))]
    assert len(rows) == (4 if has_bf16() else 2)
    result = json.loads(output.read_text())
    assert result["machine"]["cores"] and result["steps"] == 4
    for stages in result["milliseconds"].values():
        assert all(len(values) == 2 and min(values) > 0 for values in stages.values())
