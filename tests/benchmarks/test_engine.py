import json
from pathlib import Path

import pytest

from benchmarks import engine, machine
from tests.export.tiny import tiny_bundle

TIMES = {
    "diffusers, float32: step": 8.0,
    "diffusers, float32: decode": 4.0,
    "matmul, float32": 2 * engine.MATMUL**3 / 1e9,  # a peak of 1 GFLOP/s
    "engine, OpenVINO f32: step": 2.0,
    "engine, OpenVINO f32: decode": 1.0,
    "engine, OpenVINO f32: control step": 3.0,
    "engine, OpenVINO f32: guided step": 3.5,
}


def test_figures_follow_from_the_times() -> None:
    rows = {name: value for name, value, _ in engine.derive(TIMES, flops=10**9)}
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


def test_bfloat16_rows_appear_only_with_their_times() -> None:
    bf16 = {name.replace("f32", "bf16").replace("float32", "bfloat16"): value / 2 for name, value in TIMES.items()}
    times = TIMES | bf16 | {"diffusers, bfloat16, compiled: step": 3.0}
    rows = {name: value for name, value, _ in engine.derive(times, flops=10**9)}
    assert rows["engine, OpenVINO bf16: step, faster than diffusers bfloat16 compiled"] == 3.0
    assert rows["engine, OpenVINO bf16: step, faster than diffusers float32"] == 8.0
    assert not any("bf16" in name for name, _, _ in engine.derive(TIMES, flops=1))


def test_the_demo_model_is_timed() -> None:
    times = engine.demo(tiny_bundle()[1], rounds=1)
    assert set(times) == {"demo picture", "demo warm start"} and min(times.values()) > 0


@pytest.mark.slow
def test_the_command_times_every_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engine.json"
    bundle = str(tiny_bundle()[1])
    engine.main(["--size", "256", "--depth", "2", "--rounds", "1", "--bundle", bundle, "--json", str(out)])
    result = json.loads(out.read_text())
    assert set(TIMES) <= set(result["seconds"]) and min(result["seconds"].values()) > 0
    assert {"demo picture", "demo warm start"} <= set(result["seconds"])
    printed = capsys.readouterr().out
    assert ("bfloat16 rows are left out" in printed) is not machine.has_bf16()
    assert "OpenVINO f32: step, faster than diffusers float32" in printed
