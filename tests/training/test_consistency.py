"""The distillation's mathematics against diffusers and against the algorithm written out in float64."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from models.config import SamplerConfig
from models.consistency import NoiseSchedule
from training.consistency import (
    consistency_function,
    ddim_step,
    distillation_loss,
    grid_timesteps,
    guided,
    pseudo_huber,
)

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SHAPE = (5, 4, 6, 8)


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule(SamplerConfig())


@pytest.fixture(autouse=True)
def fresh_numbers() -> Iterator[None]:
    torch.manual_seed(torch.seed() % 2**31)
    yield


def test_a_ddim_step_equals_diffusers(schedule: NoiseSchedule) -> None:
    reference = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    reference.set_timesteps(50)
    t = torch.tensor([19, 39, 519, 979, 999])
    latents, eps = torch.randn(SHAPE), torch.randn(SHAPE)
    expected = [
        reference.step(eps[i : i + 1], int(t[i]), latents[i : i + 1], eta=0.0).prev_sample for i in range(len(t))
    ]
    torch.testing.assert_close(
        ddim_step(schedule, latents, eps, t, t - 20), torch.cat(expected), rtol=1e-4, atol=1e-4 * 160
    )


def test_the_consistency_function_equals_diffusers(schedule: NoiseSchedule) -> None:
    reference = LCMScheduler(**BETAS)
    t = torch.tensor([0, 19, 39, 519, 999])
    latents, eps = torch.randn(SHAPE), torch.randn(SHAPE)
    ours = consistency_function(schedule, latents, eps, t)
    for i in range(len(t)):
        c_skip, c_out = reference.get_scalings_for_boundary_condition_discrete(t[i])
        alpha_bar = reference.alphas_cumprod[t[i]].double()
        clean = (latents[i].double() - (1 - alpha_bar).sqrt() * eps[i]) / alpha_bar.sqrt()
        expected = c_skip * latents[i] + c_out * clean
        assert (ours[i] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_data_itself_is_where_every_trajectory_ends(schedule: NoiseSchedule) -> None:
    latents = torch.randn(SHAPE)
    end = consistency_function(schedule, latents, torch.randn(SHAPE), torch.full((5,), -1))
    assert torch.equal(end, latents)


def test_timesteps_are_the_samplers_grid(schedule: NoiseSchedule) -> None:
    drawn = grid_timesteps(schedule, 20_000, torch.Generator().manual_seed(0))
    assert sorted(set(drawn.tolist())) == sorted(schedule.timesteps(50))
    assert np.bincount(drawn.numpy() // 20).min() > 250  # 400 expected, σ = 20


def test_huber_is_quadratic_near_zero_and_linear_far_away() -> None:
    small, large = torch.full((1, 10), 1e-5), torch.full((1, 10), 100.0)
    zero = torch.zeros(1, 10)
    assert pseudo_huber(small.double(), zero.double(), 1e-3).item() == pytest.approx(1e-10 / 2e-3, rel=1e-3)
    assert pseudo_huber(large, zero, 1e-3).item() == pytest.approx(100.0 - 1e-3)


def test_a_loss_equals_the_algorithm_written_out(schedule: NoiseSchedule) -> None:
    """Latent Consistency Models, algorithm 1, with networks that are random matrices over channels."""
    weights = {name: torch.randn(4, 4) for name in ("conditional", "unconditional", "student", "target")}
    guidance, huber = 4.5, 1e-3

    def network(name: str, latents: Tensor, t: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", weights[name], latents) * (0.5 + t.view(-1, 1, 1, 1) / 1000)

    def teacher(latents: Tensor, t: Tensor) -> Tensor:
        return guided(network("conditional", latents, t), network("unconditional", latents, t), guidance)

    weights["student"].requires_grad_(True)
    noisy, t = torch.randn(SHAPE), torch.tensor([19, 39, 519, 979, 999])
    loss, goal = distillation_loss(
        schedule,
        teacher,
        lambda x, t: network("student", x, t),
        lambda x, t: network("target", x, t),
        noisy,
        t,
        huber,
    )

    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    w = {name: value.detach().double().numpy() for name, value in weights.items()}

    def f(x: np.ndarray, eps: np.ndarray, t: int) -> np.ndarray:
        if t < 0:
            return x
        clean = (x - np.sqrt(1 - alphas[t]) * eps) / np.sqrt(alphas[t])
        s = 10.0 * t
        return 0.25 / (s * s + 0.25) * x + s / np.sqrt(s * s + 0.25) * clean

    def net(name: str, x: np.ndarray, t: int) -> np.ndarray:
        return np.einsum("oc,chw->ohw", w[name], x) * (0.5 + t / 1000)

    losses = []
    for i, now in enumerate(t.tolist()):
        x, after = noisy[i].double().numpy(), now - 20
        eps = net("unconditional", x, now)
        eps = eps + guidance * (net("conditional", x, now) - eps)
        clean = (x - np.sqrt(1 - alphas[now]) * eps) / np.sqrt(alphas[now])
        alpha = 1.0 if after < 0 else alphas[after]
        previous = np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * eps
        expected = f(previous, net("target", previous, max(after, 0)), after)
        assert np.abs(goal[i].numpy() - expected).max() <= 1e-3 * np.abs(expected).max()
        difference = f(x, net("student", x, now), now) - expected
        losses.append(np.mean(np.sqrt(difference**2 + huber**2) - huber))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-3)
    loss.backward()
    assert weights["student"].grad is not None
    assert all(weights[name].grad is None for name in ("conditional", "unconditional", "target"))
