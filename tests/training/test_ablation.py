"""The comparison of control branches: every variant is trained and judged, and a repeated command trains nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints import load_native
from models.checkpoints.build import build
from models.controlnet_unet import ControlNetUNet, UNetControlledDiT
from models.pipeline import Pipeline
from tests.training.conftest import draw_pictures
from tests.training.test_stages import DEMO_BUNDLE, EMOJI_RECIPE
from training import ablation
from training import config as recipes
from training.controlnet import ControlStage, text_to_latents
from training.workspace import Workspace


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    draw_pictures(runs / "data", count=64, size=128)
    return runs


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    recipe = recipes.read(EMOJI_RECIPE)
    recipe["controlnet"] |= {"views": 1, "rollout": 0.0, "feedback": 0.0}
    recipe["base"] |= {"groups": ["animals", "food"]}
    return recipe


def test_each_variant_is_trained_judged_and_not_trained_again(
    runs: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    space, modules = Workspace.of_bundle(recipe, runs, DEMO_BUNDLE)
    student = text_to_latents(space, modules)
    config = ablation.AblationConfig(("transformer-1", "unet-2"), steps=1, batch=2, controls=4)
    rows = ablation.compare(space, student, config)
    assert [row.variant for row in rows] == ["none", *config.variants]
    assert [row.added for row in rows] == [0, 1 / 8, 2 / 8]
    block = sum(p.numel() for p in student.dit.blocks[0].parameters())
    proj = 256 * 256 + 256
    assert [row.parameters for row in rows] == [0, block + 2 * proj, 2 * block + 3 * proj]
    assert all(0 <= score <= 1 for row in rows for score in (row.precision, row.recall, row.f_score))
    # Branches that have hardly begun to learn change next to nothing.
    assert [row.f_score for row in rows[1:]] == pytest.approx([rows[0].f_score] * 2, abs=0.1)

    def untouched(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(ControlStage, "loss", untouched)
    assert ablation.compare(space, student, config) == rows
    with pytest.raises(SystemExit, match="is of another run, with other steps"):
        ablation.compare(space, student, replace(config, steps=2))


def test_a_pipeline_runs_the_branch_that_it_is_given(recipe: dict[str, Any], runs: Path) -> None:
    space, modules = Workspace.of_bundle(recipe, runs, DEMO_BUNDLE)
    branch = ablation.branch_of("unet-3")(modules.dit)
    assert isinstance(branch, ControlNetUNet) and len(branch.blocks) == 3
    for proj in (branch.before_proj, *branch.after_proj):
        torch.nn.init.normal_(proj.weight, std=0.05)
    side = space.config.dit.sample_size
    caption, mask, noise, control = (
        torch.randn(2, 5, 256),
        torch.ones(2, 5, dtype=torch.bool),
        torch.randn(1, 2, 4, side, side),
        torch.randn(2, 4, side, side),
    )
    pipeline = Pipeline(space.config, modules.text_encoder, modules.dit, modules.vae, branch)
    given = pipeline.denoise(caption, mask, noise, control, torch.ones(2))
    pipeline.controlled = UNetControlledDiT(modules.dit, branch)
    torch.testing.assert_close(given, pipeline.denoise(caption, mask, noise, control, torch.ones(2)), rtol=0, atol=0)
    assert not torch.allclose(given, pipeline.denoise(caption, mask, noise), atol=1e-3)


@pytest.mark.parametrize("name", ["transformer", "transformer-", "unet-x", "resnet-3", "unet--1"])
def test_unknown_variants_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is none of transformer-N and unet-N"):
        ablation.AblationConfig((name,), steps=1, batch=1)


@pytest.mark.parametrize("name", ["transformer-8", "unet-5", "transformer-0"])
def test_depths_that_a_base_cannot_have_are_refused(name: str) -> None:
    dit = build(load_native(DEMO_BUNDLE)).dit
    with pytest.raises(ValueError, match=r"control depth must be in 1\.\."):
        ablation.branch_of(name)(dit)


def test_the_command_writes_a_table(
    runs: Path,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe | {"ablation": {"variants": ["unet-1"], "steps": 1, "batch": 2, "controls": 4}}
    monkeypatch.setattr(recipes, "read", lambda path: recipe)
    out = tmp_path / "ablation.json"
    words = ["ablation", "--config", str(EMOJI_RECIPE), "--runs", str(runs), "--bundle", str(DEMO_BUNDLE)]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(out)])
    ablation.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["none", "unet-1"]
    assert "| unet-1 | " in capsys.readouterr().out


def test_a_recipe_for_a_base_is_refused(runs: Path, recipe: dict[str, Any]) -> None:
    control = {"views": 1, "loop": recipe["controlnet"]["loop"]}
    space, modules = Workspace.of_bundle(recipe | {"controlnet": control}, runs, DEMO_BUNDLE)
    config = ablation.AblationConfig(("unet-1",), steps=1, batch=1)
    with pytest.raises(ValueError, match="ships no base"):
        ablation.compare(space, text_to_latents(space, modules), config)
