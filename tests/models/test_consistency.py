"""Sampler constants and steps against diffusers' LCMScheduler."""

from collections.abc import Callable

import pytest
import torch
from diffusers import LCMScheduler
from torch import Tensor

from models.config import SamplerConfig
from models.consistency import NoiseSchedule, consistency_step
from tests.models.reference import assert_close


def lcm_scheduler(config: SamplerConfig) -> LCMScheduler:
    return LCMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="linear",
        original_inference_steps=config.origin_steps,
        timestep_scaling=config.timestep_scaling,
    )


def network() -> Callable[[Tensor, Tensor], Tensor]:
    """Something that answers like a denoiser: bounded, and different at every timestep."""
    mix = torch.randn(4, 4) / 2

    def eps(latents: Tensor, t: Tensor) -> Tensor:
        mixed = torch.einsum("dc,bchw->bdhw", mix, latents)
        return latents + 0.3 * torch.tanh(mixed + t.view(-1, 1, 1, 1) / 300)

    return eps


def sample(schedule: NoiseSchedule, eps: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
    """(last latents, all x0 [S, B, C, H, W]) of sampling with noise [S, B, C, H, W]."""
    times = schedule.timesteps(len(noise))
    latents, seen = noise[0], []
    for index, t in enumerate(times):
        following = times[index + 1] if index + 1 < len(times) else None
        coefficients = schedule.coefficients(t, following).expand(len(latents), 6)
        fresh = noise[(index + 1) % len(noise)]
        latents, x0 = consistency_step(latents, eps(latents, torch.tensor([t])), coefficients, fresh)
        seen.append(x0)
    return latents, torch.stack(seen)


@pytest.mark.parametrize("config", [SamplerConfig(), SamplerConfig(beta_end=0.012)], ids=["pixart", "other-betas"])
@pytest.mark.parametrize("steps", range(1, 9))
def test_sampling_equals_diffusers(seed: int, steps: int, config: SamplerConfig) -> None:
    eps, shape = network(), (2, 4, 6, 10)
    start = torch.randn(shape)
    scheduler = lcm_scheduler(config)
    scheduler.set_timesteps(steps)
    latents, seen = start, []
    generator = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps:
        answer = scheduler.step(eps(latents, t[None]), t, latents, generator=generator)
        latents = answer.prev_sample
        seen.append(answer.denoised)

    generator.manual_seed(seed)
    noise = torch.stack([start, *(torch.randn(shape, generator=generator) for _ in range(steps - 1))])
    schedule = NoiseSchedule(config)
    assert schedule.timesteps(steps) == scheduler.timesteps.tolist()
    ours, clean = sample(schedule, eps, noise)
    assert_close(ours, latents)
    for index, x0 in enumerate(seen):
        assert_close(clean[index], x0)
    assert torch.equal(ours, clean[-1])


def test_samples_at_different_steps_share_a_batch() -> None:
    schedule = NoiseSchedule(SamplerConfig())
    eps = network()
    visits: list[tuple[int, int | None]] = []
    for steps in (1, 2, 4, 8):
        times = schedule.timesteps(steps)
        visits += zip(times, [*times[1:], None], strict=True)
    latents, noise = torch.randn(2, len(visits), 4, 6, 6)
    coefficients = torch.stack([schedule.coefficients(t, following) for t, following in visits])
    t = torch.tensor([now for now, _ in visits])
    together = consistency_step(latents, eps(latents, t), coefficients, noise)
    for index in range(len(visits)):
        one = slice(index, index + 1)
        alone = consistency_step(latents[one], eps(latents[one], t[one]), coefficients[one], noise[one])
        for batch, single in zip(together, alone, strict=True):
            assert_close(batch[one], single, 1e-5)


def test_noise_and_boundary_equal_diffusers() -> None:
    schedule, scheduler = NoiseSchedule(SamplerConfig()), lcm_scheduler(SamplerConfig())
    t = torch.randint(0, 1000, (16,))
    clean, noise = torch.randn(2, 16, 4, 5, 7)
    assert_close(schedule.add_noise(clean, noise, t), scheduler.add_noise(clean, noise, t))
    c_skip, c_out = schedule.boundary_scalings(t)
    for index, value in enumerate(t.tolist()):
        expected = scheduler.get_scalings_for_boundary_condition_discrete(value)
        assert [c_skip[index].item(), c_out[index].item()] == pytest.approx(expected, rel=1e-6)


def test_x0_is_what_was_noised() -> None:
    schedule = NoiseSchedule(SamplerConfig())
    t = torch.tensor([0, 19, 259, 499, 759])
    clean, noise = torch.randn(2, 5, 4, 5, 7)
    assert_close(schedule.predict_x0(schedule.add_noise(clean, noise, t), noise, t), clean)


def test_the_boundary_is_exact() -> None:
    c_skip, c_out = NoiseSchedule(SamplerConfig()).boundary_scalings(torch.tensor([0]))
    assert (c_skip.item(), c_out.item()) == (1.0, 0.0)


def test_the_last_step_adds_no_noise() -> None:
    coefficients = NoiseSchedule(SamplerConfig()).coefficients(259, None)
    assert coefficients[4:].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("steps", [0, -1, 51])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.50"):
        NoiseSchedule(SamplerConfig()).timesteps(steps)
