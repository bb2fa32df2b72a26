import json
import subprocess
import sys
from pathlib import Path

from tests.export.tiny import tiny_bundle


def test_measures_overhead_and_load(tmp_path: Path) -> None:
    output = tmp_path / "times.json"
    command = [sys.executable, "-m", "benchmarks.serving", "--bundle", str(tiny_bundle()[1]), "--mixed"]
    counts = ["--pictures", "3", "--requests", "6"]
    done = subprocess.run([*command, *counts, "--json", str(output)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| 30%", "| 80%", "| 95%"))]
    assert len(rows) == 6
    result = json.loads(output.read_text())
    assert len(result["overhead"]["pool"]) == len(result["overhead"]["engine"]) == 3
    for name in ("FIFO", "pool"):
        for load in ("30%", "80%", "95%"):
            times = result[f"{name} at {load}"]["milliseconds"]
            assert len(times) == 6
            assert min(times) > 0
