"""Samplers from a run's checkpoints and from a bundle's weights, and the command on top of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.config import to_json
from models.controlnet import ControlNetTransformer
from tests.evaluation.conftest import SIZE, store_subjects
from training import config as recipes
from training.evaluation import ceiling
from training.evaluation.__main__ import main
from training.evaluation.sampler import Pictures
from training.evaluation.torch_samplers import StudentSampler, student_of_bundle, student_of_run, teacher_of_run
from training.model import ModelShape, TextToLatents
from training.vae import VaeConfig, build
from training.workspace import Workspace

RECIPE = f"""
name = "tiny"
[data]
size = {SIZE}
[vae]
channels = [8, 8, 8, 8]
norm_groups = 4
loop = {{ steps = 1, batch = 4, lr = 1e-3 }}
[model]
width = 32
depth = 3
heads = 2
controlnet_depth = 2
max_tokens = 24
text = {{ width = 32, heads = 2, layers = 1, mlp = 32, vocabulary = 300 }}
[base]
groups = ["animals", "food"]
loop = {{ steps = 1, batch = 4, lr = 1e-3 }}
[distill]
guidance = 2.0
loop = {{ steps = 1, batch = 4, lr = 1e-3 }}
[evaluation]
subjects = 40
backgrounds = 40
controls = 40
sketches = 20
frechet = 40
references = 60
teacher_steps = 3
batch = 5
"""
CAPTIONS = ["a thing 3 on a red background", "a thing 4", "a thing 5 on a blue background"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside a run whose stages have all ended; its weights are random."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("evaluation")
    path = root / "recipe.toml"
    path.write_text(RECIPE)
    table = recipes.read(path)
    folder = root / "runs" / "tiny"
    store_subjects(root / "runs" / "data")
    shape = recipes.parse(ModelShape, table["model"], "model")
    vae = build(recipes.parse(VaeConfig, table["vae"], "vae"), SIZE)
    base, student = TextToLatents(shape, SIZE), TextToLatents(shape, SIZE)
    for model in (base, student):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape) * 0.05)
    branch = ControlNetTransformer(student.dit, shape.controlnet_depth)
    for parameter in branch.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    states = {
        "vae": {f"vae.{k}": v for k, v in vae.state_dict().items()},
        "base": base.state_dict(),
        "distill": {f"student.{k}": v for k, v in student.dit.state_dict().items()},
        "controlnet": branch.state_dict(),
    }
    for stage, state in states.items():
        (folder / stage).mkdir(parents=True)
        average = {f"module.{k}": v for k, v in state.items()} | {"n_averaged": torch.tensor(1)}
        torch.save({"average": average}, folder / stage / "checkpoint.pt")
    return path


@pytest.fixture(scope="module")
def space(recipe: Path) -> Workspace:
    return Workspace.open(recipes.read(recipe), recipe.parent / "runs")


@pytest.fixture(scope="module")
def student(space: Workspace) -> StudentSampler:
    return student_of_run(space)


@pytest.fixture(scope="module")
def bundle(student: StudentSampler, space: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native files of a bundle: configuration, tokenizer, weights in half precision."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "weights").mkdir()
    pipeline = student.pipeline
    assert pipeline.controlled is not None
    (folder / "manifest.json").write_text(json.dumps({"model": to_json(pipeline.config)}))
    space.tokenizer.save(str(folder / "tokenizer.json"))
    parts = {
        "text_encoder": pipeline.text_encoder,
        "dit": pipeline.dit,
        "vae": space.vae,
        "controlnet": pipeline.controlled.controlnet,
    }
    for name, part in parts.items():
        state = {key: value.half() for key, value in part.state_dict().items()}
        shared = {id(v.untyped_storage()) for v in state.values()}
        assert len(shared) == len(state)
        save_file(state, folder / "weights" / f"{name}.safetensors")
    return folder


def difference(first: Pictures, second: Pictures) -> int:
    return np.abs(first.astype(int) - second.astype(int)).max()


def test_a_picture_does_not_depend_on_its_batch(student: StudentSampler) -> None:
    together = student(CAPTIONS, [7, 8, 9], 4)
    assert together.shape == (3, SIZE, SIZE, 3)
    assert together.dtype == np.uint8
    for i, caption in enumerate(CAPTIONS):
        assert difference(student([caption], [7 + i], 4)[0], together[i]) <= 1
    assert difference(student(CAPTIONS, [7, 8, 10], 4)[2], together[2]) > 1


def test_the_bundle_draws_what_the_run_draws(student: StudentSampler, bundle: Path) -> None:
    shipped = student_of_bundle(bundle)
    pictures, expected = shipped(CAPTIONS, [1, 2, 3], 4), student(CAPTIONS, [1, 2, 3], 4)
    assert difference(pictures, expected) <= 12
    assert np.abs(pictures.astype(int) - expected.astype(int)).mean() < 1


def test_control_and_its_strength(student: StudentSampler) -> None:
    edges = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    edges[:, 20:24] = 255
    free = student(CAPTIONS, [1, 2, 3], 2)
    assert difference(student(CAPTIONS, [1, 2, 3], 2, edges, 0.0), free) <= 1
    assert difference(student(CAPTIONS, [1, 2, 3], 2, edges, 1.0), free) > 1


def test_teacher_uses_the_distillations_guidance_and_refuses_control(space: Workspace) -> None:
    teacher = teacher_of_run(space)
    assert teacher.guidance == 2.0
    first = teacher(CAPTIONS, [1, 2, 3], 3)
    assert difference(first, teacher(CAPTIONS, [1, 2, 3], 3)) == 0
    with pytest.raises(ValueError, match="no control"):
        teacher(CAPTIONS, [1, 2, 3], 3, first)


def test_the_command_prints_a_table_and_writes_json(
    recipe: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, grid = recipe.parent / "figures" / "evaluation.json", recipe.parent / "grid.png"
    arguments = ["--bundle", bundle, "--config", recipe, "--runs", recipe.parent / "runs", "--out", out, "--grid", grid]
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments), "--scale", "0.3"])
    main()
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    measures = result["measures"]
    assert result["config"]["subjects"] == measures["subject"]["captions"] == 12
    assert measures["background"]["pairs"] == 12
    assert {"student_1", "student_2", "student_4", "student_8", "teacher_3", "real"} == set(
        measures["frechet"]["extractors"]["latent"]["distance"]
    )
    assert measures["control"]["held_out_subjects"] >= 1
    assert len(result["grid"]) == 64
    for row in ("subject top-5", "background ΔE", "control F-score", "sketch recall", "Fréchet, latent: student_4"):
        assert row in printed
    assert grid.exists()


def test_the_command_takes_some_measures_of_a_run_alone(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", recipe, "--runs", recipe.parent / "runs", "--only", "background", "--scale", "0.1"]
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    main()
    printed = capsys.readouterr().out
    assert "background" in printed
    assert "subject" not in printed


def test_the_ceiling_command_bounds_the_measures(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recipe.parent / "ceiling.json"
    arguments = ["--config", recipe, "--runs", recipe.parent / "runs", "--count", 12, "--out", out]
    monkeypatch.setattr(sys, "argv", ["ceiling", *map(str, arguments)])
    ceiling.main()
    result = json.loads(out.read_text())
    assert result["pictures"] == 12
    assert result["changes"]["none"]["top1"] == 1.0
    assert set(result["control_bounds"]) == {ceiling.RECONSTRUCTION, "another subject's picture"}
    assert ceiling.RECONSTRUCTION in capsys.readouterr().out
