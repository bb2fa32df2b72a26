"""The engine's numpy twins against models/ in torch and against diffusers, and the noise against its description."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import noise, sampler
from engine.manifest import Positions, Sampler
from engine.positions import sincos_positions
from models.config import SamplerConfig
from models.consistency import NoiseSchedule, consistency_step
from models.positions import sincos_positions as torch_positions

CONSTANTS: dict[str, Any] = {
    "train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "origin_steps": 50,
    "sigma_data": 0.5,
    "timestep_scaling": 10.0,
}
SAMPLER = Sampler(**CONSTANTS)


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_schedule_is_that_of_models_and_of_diffusers(steps: int) -> None:
    ours = sampler.schedule(SAMPLER, steps)
    twin = NoiseSchedule(SamplerConfig(**CONSTANTS))
    visited = twin.timesteps(steps)
    assert ours.timesteps.tolist() == visited
    for row, t, following in zip(ours.coefficients, visited, [*visited[1:], None], strict=True):
        np.testing.assert_allclose(row, twin.coefficients(t, following).numpy(), rtol=1e-6, atol=0)
    reference = LCMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    reference.set_timesteps(steps, original_inference_steps=50)
    assert reference.timesteps.tolist() == visited


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_steps_with_these_coefficients_are_those_of_diffusers(steps: int) -> None:
    ours = sampler.schedule(SAMPLER, steps)
    reference = LCMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    reference.set_timesteps(steps, original_inference_steps=50)
    generator = torch.Generator().manual_seed(steps)
    latents = expected = torch.randn(2, 4, 6, 4, generator=generator)
    for index, t in enumerate(reference.timesteps):
        eps = torch.randn(latents.shape, generator=generator)
        drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
        answer = reference.step(eps, t, expected, generator=torch.Generator().manual_seed(index))
        coefficients = torch.from_numpy(ours.coefficients[index])[None].expand(2, -1)
        latents, x0 = consistency_step(latents, eps, coefficients, drawn)
        expected = answer.prev_sample
        scale = answer.denoised.abs().max()
        assert (x0 - answer.denoised).abs().max() <= 1e-5 * scale
        assert (latents - expected).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("steps", [0, 9, -1])
def test_other_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.8"):
        sampler.schedule(SAMPLER, steps)


@pytest.mark.parametrize(("height", "width", "base", "scale"), [(8, 8, 8, 1.0), (3, 7, 8, 1.0), (64, 40, 64, 2.0)])
def test_positions_are_those_of_models_and_of_diffusers(height: int, width: int, base: int, scale: float) -> None:
    ours = sincos_positions(Positions(width=48, patch_size=2, base_size=base, interpolation_scale=scale), height, width)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, torch_positions(height, width, 48, base, scale).numpy(), atol=1e-6)
    reference = get_2d_sincos_pos_embed(
        48, (height, width), base_size=base, interpolation_scale=scale, output_type="pt", device=torch.device("cpu")
    )
    np.testing.assert_allclose(ours[0], reference.numpy(), atol=1e-5)


def philox_words(seed: int, step: int, count: int) -> list[int]:
    """Philox4x64-10 transcribed from the paper (figure 1, table 2), for the counters step·2¹⁹² + 1, + 2, …"""
    low = 2**64 - 1
    words: list[int] = []
    for block in range(1, -(-count // 4) + 1):
        counter = (step << 192) + block
        c0, c1, c2, c3 = (counter >> 64 * i & low for i in range(4))
        k0, k1 = seed, 0
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
            c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & low, (p0 >> 64) ^ c3 ^ k1, p0 & low
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & low, (k1 + 0xBB67AE8584CAA73B) & low
        words += [c0, c1, c2, c3]
    return words[:count]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 8), st.integers(1, 41))
def test_noise_is_what_its_description_says(seed: int, step: int, count: int) -> None:
    half = (count + 1) // 2
    words = philox_words(seed, step, 2 * half)
    cosines, sines = [], []
    for first, second in zip(words[:half], words[half:], strict=True):
        radius = (-2 * np.log(((first >> 11) + 1) / 2**53)) ** 0.5
        angle = 2 * np.pi * (second >> 11) / 2**53
        cosines.append(radius * np.cos(angle))
        sines.append(radius * np.sin(angle))
    expected = np.array([*cosines, *sines][:count], dtype=np.float32)
    np.testing.assert_allclose(noise.normal(seed, step, (count,)), expected, rtol=1e-6, atol=1e-7)


def test_noise_is_normal_and_differs_by_seed_and_step() -> None:
    draws = {(seed, step): noise.normal(seed, step, (4, 32, 32)) for seed in (0, 1, 2**63 - 1) for step in (0, 1, 7)}
    values = np.concatenate([draw.ravel() for draw in draws.values()]).astype(np.float64)
    # Each bound is five standard errors for 36,864 independent values.
    error = 5 / np.sqrt(values.size)
    assert abs(values.mean()) < error
    assert abs((values**2).mean() - 1) < error * 2**0.5
    assert abs((values**4).mean() - 3) < error * 96**0.5
    keys = list(draws)
    for i, first in enumerate(keys):
        for second in keys[i + 1 :]:
            assert abs(np.mean(draws[first] * draws[second])) < 5 / 64
    np.testing.assert_array_equal(draws[0, 1], noise.normal(0, 1, (4, 32, 32)))
