"""Every stage by its own command; and a run that is killed ends as an unbroken one does."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models.checkpoints import load_native
from tests.training.conftest import draw_pictures, write_recipe
from training import config as recipes
from training.base import adopt, snr_weight, start_from
from training.loop import averaged_weights
from training.model import ModelShape, TextToLatents

ROOT = Path(__file__).resolve().parents[2]
DEMO_BUNDLE = ROOT / "models" / "zoo" / "emoji"
EMOJI_RECIPE = ROOT / "training" / "configs" / "emoji.toml"

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(stage: str, recipe: Path, runs: Path) -> list[str]:
    return [sys.executable, "-m", f"training.{stage}", "--config", str(recipe), "--runs", str(runs)]


def start(stage: str, recipe: Path, runs: Path) -> None:
    subprocess.run(command(stage, recipe, runs), check=True, env=ENVIRONMENT)


def refusal(stage: str, recipe: Path, runs: Path, *extra: str) -> str:
    done = subprocess.run([*command(stage, recipe, runs), *extra], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["average"]


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", steps=40)
    for name in ("unbroken", "killed"):
        draw_pictures(tmp_path / name / "data")
    start("vae", recipe, tmp_path / "unbroken")

    checkpoint = tmp_path / "killed" / "tiny" / "vae" / "checkpoint.pt"
    process = subprocess.Popen(command("vae", recipe, tmp_path / "killed"), env=ENVIRONMENT)
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    interrupted = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < interrupted < 40, "the run was over before it could be killed"

    start("vae", recipe, tmp_path / "killed")
    expected, resumed = state(tmp_path / "unbroken/tiny/vae"), state(tmp_path / "killed/tiny/vae")
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name
    with (checkpoint.parent / "log.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps))


def test_all_stages_run_one_after_the_other(tmp_path: Path, runs: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", steps=6)
    for stage in ("vae", "base", "distill", "controlnet"):
        start(stage, recipe, runs)
        folder = runs / "tiny" / stage
        with (folder / "log.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert float(row["loss"]) > 0
        with Image.open(folder / "samples-000006.png") as grid:
            assert grid.width >= 8 * 32


@pytest.mark.slow
def test_what_another_run_left_is_refused(tmp_path: Path, runs: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", steps=2)
    for stage in ("vae", "base", "distill", "controlnet"):
        start(stage, recipe, runs)
    recipe.write_text(recipe.read_text().replace('"animals"', '"food"'))
    assert "is of another run, with other [base];" in refusal("base", recipe, runs)
    shutil.rmtree(runs / "tiny" / "base")
    start("base", recipe, runs)
    assert "is of another run, with other [base], base;" in refusal("distill", recipe, runs)
    assert "is of another run, with other frozen model;" in refusal("controlnet", recipe, runs)


@pytest.mark.slow
def test_resuming_the_distillation_keeps_the_target(tmp_path: Path, runs: Path) -> None:
    """The target network is state of its own: 4 + 4 steps must equal 8, target included."""
    whole, half = write_recipe(tmp_path / "whole.toml", steps=10), tmp_path / "half"
    start("vae", whole, runs)
    start("base", whole, runs)
    half.mkdir()
    for part in ("vae", "base", "latents.pt", "tokenizer.json"):
        (half / "tiny").mkdir(exist_ok=True)
        (half / "tiny" / part).symlink_to(runs / "tiny" / part)
    (half / "data").symlink_to(runs / "data")
    start("distill", whole, runs)
    interrupt_after(command("distill", whole, half), half / "tiny" / "distill" / "checkpoint.pt")
    start("distill", whole, half)
    first = torch.load(runs / "tiny/distill/checkpoint.pt", weights_only=True)["model"]
    second = torch.load(half / "tiny/distill/checkpoint.pt", weights_only=True)["model"]
    assert any(name.startswith("target.") for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def interrupt_after(arguments: list[str], checkpoint: Path) -> None:
    """Run a command and kill it as soon as its first checkpoint is there."""
    process = subprocess.Popen(arguments, env=ENVIRONMENT)
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()


def test_an_unknown_key_in_a_recipe_is_named(tmp_path: Path, runs: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", steps=1)
    recipe.write_text(recipe.read_text().replace("norm_groups", "norm_gruops"))
    done = subprocess.run(command("vae", recipe, runs), capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode != 0
    assert "norm_gruops" in done.stderr


@pytest.mark.slow
def test_a_bundle_gets_a_new_control_branch(tmp_path: Path) -> None:
    runs, recipe, out = tmp_path / "runs", tmp_path / "recipe.toml", tmp_path / "controlnet.safetensors"
    draw_pictures(runs / "data", count=64, size=128)
    text = EMOJI_RECIPE.read_text().partition("[controlnet]")[0]
    loop = "loop = { steps = 2, batch = 2, lr = 1e-3, warmup = 1, save_every = 2, sample_every = 5 }"
    recipe.write_text(f'{text}[controlnet]\nviews = 1\nobjective = "consistency"\n{loop}\n')
    extra = ["--bundle", str(DEMO_BUNDLE), "--out", str(out)]
    subprocess.run([*command("controlnet", recipe, runs), *extra], check=True, env=ENVIRONMENT)
    shipped, trained = load_native(DEMO_BUNDLE).controlnet, load_file(out)
    assert shipped is not None
    assert {name: value.shape for name, value in trained.items()} == {n: v.shape for n, v in shipped.items()}
    assert trained["after_proj.0.weight"].abs().sum() > 0

    bundle = ["--bundle", str(DEMO_BUNDLE), "--init", str(DEMO_BUNDLE)]
    assert "is of another run, with other initial weights;" in refusal("controlnet", recipe, runs, *bundle)

    again = tmp_path / "again.safetensors"
    recipe.write_text(recipe.read_text().replace("lr = 1e-3", "lr = 0.0").replace('name = "emoji"', 'name = "again"'))
    extra = ["--bundle", str(DEMO_BUNDLE), "--init", str(DEMO_BUNDLE), "--out", str(again)]
    subprocess.run([*command("controlnet", recipe, runs), *extra], check=True, env=ENVIRONMENT)
    for name, value in load_file(again).items():
        torch.testing.assert_close(value.float(), shipped[name].float(), rtol=1e-3, atol=1e-6)

    recipe.write_text(recipe.read_text().replace("consistency", "epsilon"))
    refused = subprocess.run([*command("controlnet", recipe, runs), *extra], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "objective" in refused.stderr


def test_a_base_starts_from_a_bundle(tmp_path: Path) -> None:
    shape = recipes.parse(ModelShape, recipes.read(EMOJI_RECIPE)["model"], "model")
    model = TextToLatents(shape, 128)
    start_from(DEMO_BUNDLE, model)
    shipped = load_native(DEMO_BUNDLE)
    for part, expected in ((model.dit, shipped.dit), (model.text, shipped.text_encoder)):
        for name, value in part.state_dict().items():
            torch.testing.assert_close(value, expected[name].float(), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())

    adopt(DEMO_BUNDLE, tmp_path)
    for name, value in averaged_weights(tmp_path / "vae", "vae.").items():
        torch.testing.assert_close(value, shipped.vae[name].float(), rtol=0, atol=0)
    assert len(averaged_weights(tmp_path / "vae", "vae.")) == len(shipped.vae)
    assert (tmp_path / "tokenizer.json").read_bytes() == shipped.tokenizer.read_bytes()

    draw_pictures(tmp_path / "runs" / "data", size=128)
    adopt(DEMO_BUNDLE, tmp_path / "runs" / "emoji")
    assert "does not say what it was trained from" in refusal("vae", EMOJI_RECIPE, tmp_path / "runs")

    with pytest.raises(RuntimeError, match=r"blocks\.3"):
        start_from(DEMO_BUNDLE, TextToLatents(replace(shape, depth=3), 128))


@pytest.mark.parametrize("snr, floor, weight", [(1.0, 0.0, 1.0), (5.0, 0.0, 1.0), (50.0, 0.0, 0.1), (0.01, 0.05, 5.0)])
def test_snr_weight(snr: float, floor: float, weight: float) -> None:
    alpha_bar = torch.tensor([snr / (1 + snr)], dtype=torch.float64)
    torch.testing.assert_close(snr_weight(alpha_bar, 5.0, floor), torch.tensor([weight], dtype=torch.float64))
