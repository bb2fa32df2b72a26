import json
from pathlib import Path

import pytest

from benchmarks import engine, machine
from benchmarks.contenders import MATMUL
from engine.bundle import Bundle
from engine.sources import BATCHES
from tests.export.tiny import tiny_bundle

TIMES = {
    "diffusers, float32: step": 8.0,
    "diffusers, float32: decode": 4.0,
    "matmul, float32": 2 * MATMUL**3 / 1e9,  # a peak of 1 GFLOP/s
    "engine, OpenVINO f32: step": 2.0,
    "engine, OpenVINO f32: decode": 1.0,
    "engine, OpenVINO f32: control step": 3.0,
    "engine, OpenVINO f32: guided step": 3.5,
}


def test_figures_follow_from_the_times() -> None:
    rows = {name: value for name, value, _ in engine.derive("f32", TIMES, flops=10**9)}
    label = "engine, OpenVINO f32"
    assert rows == pytest.approx(
        {
            f"{label}: step, faster than diffusers float32": 4.0,
            f"{label}: step, share of the float32 product's rate": 50.0,
            f"{label}: 4-step picture": 9.0,
            f"{label}: 4-step picture, faster than diffusers float32": 36 / 9,
            f"{label}: 4 steps, faster than 14 guided steps": 50 / 9,
            f"{label}: 4 steps, faster than 20 guided steps": 71 / 9,
            f"{label}: cost that control adds to a step": 50.0,
            f"{label}: decoder's share of the picture": 100 / 9,
        }
    )


def test_bfloat16_is_compared_with_compiled_bfloat16_and_with_8_bits() -> None:
    times = {name.replace("f32", "bf16"): value / 2 for name, value in TIMES.items() if "engine" in name}
    times |= {"matmul, bfloat16": 1.0, "engine, OpenVINO int8 and bf16: step": 0.25}
    times |= {name: value for name, value in TIMES.items() if "diffusers" in name}
    times |= {"diffusers, bfloat16, compiled: step": 3.0}
    rows = {name: value for name, value, _ in engine.derive("bf16", times, flops=10**9)}
    assert rows["engine, OpenVINO bf16: step, faster than diffusers bfloat16 compiled"] == 3.0
    assert rows["engine, OpenVINO bf16: step, faster than diffusers float32"] == 8.0
    assert rows["engine, OpenVINO int8 and bf16: step, faster than diffusers float32"] == 32.0
    assert rows["engine, OpenVINO int8 and bf16: step, faster than bf16"] == 4.0


def test_the_start_that_is_timed_loads_a_graph_for_every_usual_batch(tmp_path: Path) -> None:
    engine.start(Bundle.load(tiny_bundle()[1]), tmp_path)
    # As the server's: for each module and any size, and for the default size for each usual number of samples.
    assert len(list(tmp_path.iterdir())) == 6 + 3 + 2 * len(BATCHES)


def test_the_demo_model_is_timed() -> None:
    times = engine.demo(tiny_bundle()[1], rounds=1)
    assert set(times) == {"demo picture", "demo warm start"} and min(times.values()) > 0


@pytest.mark.slow
def test_the_command_times_every_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engine.json"
    bundle = str(tiny_bundle()[1])
    engine.main(["--size", "256", "--depth", "2", "--int8", "--rounds", "1", "--bundle", bundle, "--json", str(out)])
    result = json.loads(out.read_text())
    times = result["seconds"]
    assert set(TIMES) <= set(times["f32"]) and all(min(group.values()) > 0 for group in times.values())
    assert set(times["demo"]) == {"demo picture", "demo warm start"}
    last = "bf16" if machine.has_bf16() else "f32"
    assert f"engine, OpenVINO int8 and {last}: step" in times[last]
    printed = capsys.readouterr().out
    assert ("bfloat16 rows are left out" in printed) is not machine.has_bf16()
    assert "OpenVINO f32: step, faster than diffusers float32" in printed
