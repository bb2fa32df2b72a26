"""What teaches the control branch beside the true pictures: its own sampling, and its own pictures' edges."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.config import LatentConfig
from models.consistency import consistency_step
from models.edges import SoftEdge
from models.pipeline import Pipeline
from tests.training.conftest import draw_pictures
from tests.training.test_stages import DEMO_BUNDLE, EMOJI_RECIPE
from training import config as recipes
from training.control_pairs import bend
from training.controlnet import Condition, ControlConfig, ControlStage, text_to_latents
from training.feedback import EdgeFeedback, soft_edges
from training.loop import LoopConfig
from training.workspace import Workspace

LOOP = LoopConfig(steps=1, batch=3, lr=1e-3)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_differentiable_edges_are_the_detectors() -> None:
    images = torch.randint(256, (3, 24, 40, 3), dtype=torch.uint8)
    drawn = soft_edges(images.permute(0, 3, 1, 2) / 255, SoftEdge())
    # Half a level of rounding, and 1e-3 of an edge where the root was lifted.
    assert (drawn * 255 - SoftEdge()(images)[..., 0]).abs().max() <= 0.5 + 1.0
    assert drawn.max() <= 1


def test_plain_pictures_have_a_gradient() -> None:
    colors = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    soft_edges(colors, SoftEdge()).sum().backward()
    assert colors.grad is not None
    assert colors.grad.isfinite().all()


def test_feedback_is_the_distance_of_edges_and_has_the_right_slope(double: None) -> None:
    torch.manual_seed(int(torch.empty((), dtype=torch.int64).random_()) % 2**31)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
    ).requires_grad_(False)
    latent = LatentConfig(mean=(0.1, -0.2, 0.3, 0.0), std=(1.0, 2.0, 0.5, 1.5))
    feedback = EdgeFeedback(vae, latent)
    latents = torch.randn(2, 4, 6, 6, requires_grad=True)
    asked = torch.randint(256, (2, 12, 12), dtype=torch.uint8)

    raw = latents * torch.tensor(latent.std)[:, None, None] + torch.tensor(latent.mean)[:, None, None]
    picture = (vae.decode(raw).sample + 1) / 2
    expected = (soft_edges(picture, SoftEdge()) - asked.double() / 255).abs().mean(dim=(1, 2))
    loss = feedback(latents, asked)
    torch.testing.assert_close(loss, expected)

    loss.sum().backward()
    assert latents.grad is not None
    direction = torch.randn_like(latents)
    with torch.no_grad():
        ahead, behind = (feedback(latents + h * direction, asked).sum() for h in (1e-6, -1e-6))
    slope = (latents.grad * direction).sum()
    torch.testing.assert_close((ahead - behind) / 2e-6, slope, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> ControlStage:
    """The demo model's branch, on drawn pictures."""
    runs = tmp_path_factory.mktemp("runs")
    draw_pictures(runs / "data", count=64, size=128)
    space, modules = Workspace.of_bundle(recipes.read(EMOJI_RECIPE), runs, DEMO_BUNDLE)
    student = text_to_latents(space, modules)
    config = ControlConfig(LOOP, views=1, objective="consistency", rollout=1.0, feedback=1.0, feedback_batch=2)
    made = ControlStage(space, student, student, config)
    assert modules.controlnet is not None
    made.model.load_state_dict(modules.controlnet.state_dict())
    return made


def test_a_rollout_is_the_samplers_own_way(stage: ControlStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents of a rollout, finished by the pipeline's last steps, are what the pipeline makes from the same noise."""
    # The pipeline computes in float32, where training would take bfloat16 on some processors.
    monkeypatch.setattr("training.precision.has_native_bfloat16", lambda: False)
    space, student = stage.space, stage.student
    config, shape = stage.config, (2, 4, 16, 16)
    control, (ids, mask) = (
        torch.randn(shape),
        (torch.tensor([[5, 9, 1], [7, 1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])),
    )
    caption = student.text(ids, mask.bool())
    condition = Condition(caption, mask.bool(), control)
    pipeline = Pipeline(space.config, student.text, student.dit, space.vae, stage.model)
    stops = set()
    for seed in range(6):
        first = torch.randn(shape)
        latents, t = stage._own_latents(condition, first, torch.Generator().manual_seed(seed))
        timesteps = space.schedule.timesteps(config.rollout_steps)
        stop = timesteps.index(int(t[0]))
        stops.add(stop)
        # The rollout's own draws, once more: where to stop, then the noise of each step before it.
        again = torch.Generator().manual_seed(seed)
        torch.randint(len(timesteps), (), generator=again)
        fresh = [torch.randn(shape, generator=again) for _ in range(stop)]
        rest = [torch.randn(shape) for _ in range(config.rollout_steps - stop - 1)]
        expected = pipeline.denoise(caption, mask.bool(), torch.stack([first, *fresh, *rest]), control, torch.ones(2))
        torch.testing.assert_close(
            _finish(stage, latents, condition, timesteps[stop:], rest), expected, rtol=1e-3, atol=1e-3
        )
    assert len(stops) > 1


def _finish(
    stage: ControlStage, latents: Tensor, condition: Condition, timesteps: list[int], noises: list[Tensor]
) -> Tensor:
    for now, after, noise in zip(timesteps, [*timesteps[1:], None], [*noises, torch.zeros_like(latents)], strict=True):
        with torch.no_grad():
            eps = stage._predict(latents, torch.full((len(latents),), now), condition)
        row = stage.space.schedule.coefficients(now, after).expand(len(latents), -1)
        latents, _ = consistency_step(latents, eps, row, noise)
    return latents


def test_the_loss_reaches_the_branch_alone(stage: ControlStage) -> None:
    loss, figures = stage.loss(0, torch.Generator().manual_seed(3))
    loss.backward()
    assert loss.item() == pytest.approx(figures["jump"] + figures["edges"], rel=1e-5)
    assert all(parameter.grad is not None for parameter in stage.model.parameters() if parameter.requires_grad)
    assert not any(
        parameter.requires_grad for parameter in (*stage.student.parameters(), *stage.space.vae.parameters())
    )


def test_sketches_stand_in_for_edges(stage: ControlStage) -> None:
    losses = {}
    for share in (0.0, 1.0):
        stage.config = replace(stage.config, sketches=share)
        edges, sketches = stage.data.edges, stage.data.sketches
        stage.data = replace(stage.data, **{"edges" if share else "sketches": torch.full_like(edges, torch.nan)})
        losses[share] = stage.loss(0, torch.Generator().manual_seed(3))[0].item()
        stage.data = replace(stage.data, edges=edges, sketches=sketches)
    stage.config = replace(stage.config, sketches=0.0)
    assert losses[0.0] != losses[1.0]
    assert all(np.isfinite(loss) for loss in losses.values())


def test_bending_keeps_the_picture_and_its_place() -> None:
    """Every colour stays one of the picture's, nothing leaves the frame, and two pictures are bent differently."""
    picture = torch.zeros(8, 4, 64, 64)
    picture[:, :, 16:48, 16:48] = 255
    bent = bend(picture, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
    assert bent.shape == picture.shape
    assert bent.min() >= 0
    assert bent.max() <= 255.01  # interpolation rounds
    share = bent.sum(dim=(1, 2, 3)) / picture.sum(dim=(1, 2, 3))
    assert (share > 0.4).all()
    assert (share < 1.4).all()
    assert (bent[0] - bent[1]).abs().mean() > 1
    assert bent[:, :, [0, -1]].abs().max() == 0


def test_epsilon_has_no_jumps_to_judge() -> None:
    with pytest.raises(ValueError, match="consistency"):
        ControlConfig(LOOP, feedback=1.0)
