"""Latent consistency sampling in numpy: which timesteps to visit, and the six numbers that one step needs.

The denoiser graph applies `x0 = c_skip·x + c_out·(x·inv_alpha − eps·sigma_over_alpha)` and
`next = alpha_next·x0 + sigma_next·noise`, each sample with its own numbers, so samples at different steps may share
a batch. Source: Luo et al., "Latent Consistency Models" (arXiv 2310.04378), §4 and algorithm 3.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.manifest import Sampler

MAX_STEPS = 8


@dataclass(frozen=True)
class Schedule:
    """The steps of one request: timesteps float32 [S] (descending), coefficients float32 [S, 6]."""

    timesteps: NDArray[np.float32]
    coefficients: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.timesteps)


def alphas_cumprod(sampler: Sampler) -> NDArray[np.float64]:
    """Signal share ᾱ of each training timestep, [T], for linearly spaced betas."""
    betas = np.linspace(sampler.beta_start, sampler.beta_end, sampler.train_timesteps, dtype=np.float64)
    return np.cumprod(1.0 - betas, dtype=np.float64)


def timesteps(sampler: Sampler, steps: int) -> list[int]:
    """The timesteps visited in `steps` steps: evenly chosen from the distillation grid, noisiest first.

    Raises:
        ValueError: `steps` is not in 1..8.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps must be in 1..{MAX_STEPS}, not {steps}")
    stride = sampler.train_timesteps // sampler.origin_steps
    grid = [stride * (i + 1) - 1 for i in reversed(range(sampler.origin_steps))]
    return [grid[i * sampler.origin_steps // steps] for i in range(steps)]


def coefficients(sampler: Sampler, alphas: NDArray[np.float64], t: int, following: int | None) -> NDArray[np.float32]:
    """`[1/alpha, sigma/alpha, c_skip, c_out, alpha_next, sigma_next]` of the step from `t` to `following`.

    After the last step (`following` is None) the sample is x0 itself: alpha_next 1, sigma_next 0.
    """
    alpha, sigma = np.sqrt(alphas[t]), np.sqrt(1.0 - alphas[t])
    scaled = t * sampler.timestep_scaling
    norm = scaled**2 + sampler.sigma_data**2
    c_skip, c_out = sampler.sigma_data**2 / norm, scaled / np.sqrt(norm)
    after = 1.0 if following is None else alphas[following]
    values = [1.0 / alpha, sigma / alpha, c_skip, c_out, np.sqrt(after), np.sqrt(1.0 - after)]
    return np.asarray(values, dtype=np.float32)


def schedule(sampler: Sampler, steps: int) -> Schedule:
    """Everything that a request of `steps` steps needs to know."""
    visited = timesteps(sampler, steps)
    alphas = alphas_cumprod(sampler)
    rows = [coefficients(sampler, alphas, t, n) for t, n in zip(visited, [*visited[1:], None], strict=True)]
    return Schedule(np.asarray(visited, dtype=np.float32), np.stack(rows))
