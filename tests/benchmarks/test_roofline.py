import json
from pathlib import Path

import pytest

from benchmarks import memory, roofline
from benchmarks.counting import Count
from benchmarks.devices import GPUS, Device, this_cpu
from engine.bundle import Bundle
from server.settings import DEMO_BUNDLE
from tests.export.tiny import tiny_bundle

SLOW_MEMORY = Device("slow memory", peak=1000.0, bandwidth=10.0, width=2, source="made up")


def test_a_floor_is_set_by_what_is_scarcer() -> None:
    busy, idle = Count(matmul=5000, weights=10), Count(matmul=5000, weights=100, moved=50)
    assert roofline.floor(busy, SLOW_MEMORY) == 5.0
    assert roofline.floor(idle, SLOW_MEMORY) == 2 * 150 / 10


def test_a_picture_is_one_encoding_four_steps_and_one_decoding() -> None:
    counts = {
        "text_encoder": Count(matmul=1, weights=10, matrices=9),
        "denoiser": Count(matmul=100, attention=10, weights=20, moved=3),
        "vae_decoder": Count(conv=1000, weights=30),
    }
    *modules, picture = roofline.rows("x", 512, counts)
    assert [row.module for row in modules] == ["text_encoder", "denoiser", "vae_decoder"]
    assert picture.count == Count(matmul=401, attention=40, conv=1000, weights=60, matrices=9, moved=12)
    seconds = [row.floor(SLOW_MEMORY) for row in modules]
    assert picture.floor(SLOW_MEMORY) == pytest.approx(seconds[0] + 4 * seconds[1] + seconds[2])


def test_the_command_prints_both_tables_and_writes_what_they_are_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "roofline.json"
    roofline.main(["--bundle", str(tiny_bundle()[1]), "--no-cpu", "--json", str(out)])
    printed = capsys.readouterr().out
    assert all(gpu.name in printed and gpu.source in printed for gpu in GPUS)
    found = json.loads(out.read_text())
    assert [row["module"] for row in found["rows"]] == [*roofline.MODULES, roofline.PICTURE]
    for row in found["rows"]:
        assert row["flops"] > 0 and all(seconds > 0 for seconds in row["floor_seconds"].values())


def test_this_machine_is_measured() -> None:
    cpu = this_cpu(size=256, megabytes=8, rounds=1)
    assert 1e8 < cpu.peak < 1e15 and 1e7 < cpu.bandwidth < 1e13
    assert cpu.width == 4 and "256×256" in cpu.source


def test_ways_to_keep_the_model_add_up() -> None:
    needed = {
        name: memory.Need(name, weights, weights // 2, activations, 2 * activations)
        for name, weights, activations in (
            ("text_encoder", 1000, 1),
            ("denoiser", 100, 20),
            ("denoiser_control", 150, 25),
            ("vae_decoder", 10, 300),
            ("vae_encoder", 5, 200),
            ("edge_detector", 3, 100),
        )
    }
    peaks = {plan.name: (plan.resident, plan.peak) for plan in memory.plans(needed, tile=70)}
    assert peaks["text to image, fp16 text encoder, resident"] == (1110, 1410)
    assert peaks["text to image, fp16 text encoder, resident, decoded in tiles"] == (1110, 1180)
    assert peaks["text to image, fp16 text encoder, freed after encoding"] == (1000, 1001)
    assert peaks["text to image, 8-bit text encoder, freed after encoding"] == (500, 501)
    # Both denoisers are loaded, and the encoder of the control image is not tiled.
    assert peaks["with control, 8-bit text encoder, resident"] == (768, 1068)
    assert peaks["with control, 8-bit text encoder, resident, decoded in tiles"] == (768, 968)
    assert peaks["with control, 8-bit text encoder, freed after encoding"] == (500, 568)
    table = memory.plan_table(memory.plans(needed, tile=70), limit=1068)
    assert "| with control, 8-bit text encoder, resident | 0.00 | 0.00 | yes | on a CPU alone |" in table
    assert "| with control, fp16 text encoder, resident | 0.00 | 0.00 | no | yes |" in table
    assert "| with control, fp16 text encoder, resident, decoded in tiles | 0.00 | 0.00 | no | no |" in table


def test_the_engine_holds_every_module_that_the_memory_counts() -> None:
    assert set(Bundle.load(DEMO_BUNDLE).manifest.modules) == set(memory.MODULES)
