import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.tiny import tiny_bundle


def bench(module: str, *options: str) -> tuple[str, dict]:
    """What a benchmark of the tiny model prints, and what it writes."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--bundle", str(tiny_bundle()[1]), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(Path(options[options.index("--json") + 1]).read_text())


def test_measures_overhead(tmp_path: Path) -> None:
    output, result = bench("serving", "--pictures", "3", "--json", str(tmp_path / "times.json"))
    assert "serving adds" in output
    assert len(result["overhead"]["pool"]) == len(result["overhead"]["engine"]) == 3


def test_measures_http_with_prompts_that_are_encoded(tmp_path: Path) -> None:
    counts = ["--requests", "3", "--clients", "2", "--control", "64"]
    output, result = bench("http", *counts, "--json", str(tmp_path / "times.json"))
    assert "png overhead_p50" in output and "json overhead_p50" in output and "lag_max" in output
    for kind in ("png", "json"):
        assert result[kind]["total_p50"] > result[kind]["engine_p50"] > result[kind]["text_p50"] > 0
        assert result[kind]["overhead_p50"] > result[kind]["encode_p50"] > 0
    assert result["loaded_answers"] == 2


@pytest.mark.slow
def test_measures_load_beside_litserve(tmp_path: Path) -> None:
    counts = ["--requests", "6", "--block", "4", "--loads", "0.5", "--peers", "2x5"]
    output, result = bench("load", "--mixed", *counts, "--json", str(tmp_path / "times.json"))
    servers = ["this server", "LitServe, one by one", "LitServe, batches of 2 within 5 ms"]
    rows = [line.split(" | ")[1] for line in output.splitlines() if line.startswith("| 50%")]
    assert rows == [*servers, "ours / best peer's"]
    assert list(result["50%"]) == servers
    for score in result["50%"].values():
        assert len(score["milliseconds"]) == 6 and min(score["milliseconds"]) > 0
