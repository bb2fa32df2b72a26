"""The distillation's own mathematics: consistency function, loss, and one update's target.

Source: Luo et al., 2023, "Latent Consistency Models" (arXiv 2310.04378), algorithm 1; PixArt-δ, section 3.
Timesteps t are int64 [B] on the CPU, latents and ε [B, C, h, w] on any device.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.consistency import NoiseSchedule

Predict = Callable[[Tensor, Tensor], Tensor]
"""ε [B, C, h, w] in float32 of noisy latents [B, C, h, w] at timesteps [B]; captions are bound in it."""


def pseudo_huber(first: Tensor, second: Tensor, c: float) -> Tensor:
    """sqrt(d² + c²) - c, averaged over all but the batch: [B, ...] → [B]."""
    return (((first - second).square() + c * c).sqrt() - c).flatten(1).mean(dim=1)


def consistency_function(schedule: NoiseSchedule, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """f(x, t) = c_skip(t) x + c_out(t) x0(x, eps, t); for t < 0, on the data itself, the identity."""
    at = t.clamp(min=0)
    c_skip, c_out = (scale.to(latents.device)[:, None, None, None] for scale in schedule.boundary_scalings(at))
    value = c_skip * latents + c_out * schedule.predict_x0(latents, eps, at)
    return torch.where((t >= 0).to(latents.device)[:, None, None, None], value, latents)


def ddim_step(schedule: NoiseSchedule, latents: Tensor, eps: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One deterministic DDIM step (Song et al., 2021, eq. 12 with σ = 0); t_next = -1 means x0."""
    clean = schedule.predict_x0(latents, eps, t)
    alpha_bar = torch.where(t_next >= 0, schedule.alphas_cumprod[t_next.clamp(min=0)], 1.0)
    alpha_bar = alpha_bar.to(latents.device)[:, None, None, None]
    return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * eps


def grid_timesteps(schedule: NoiseSchedule, batch: int, generator: torch.Generator) -> Tensor:
    """Timesteps drawn evenly from the training grid: k-1, 2k-1, … for a stride k."""
    stride = schedule.config.train_timesteps // schedule.config.origin_steps
    return torch.randint(1, schedule.config.origin_steps + 1, (batch,), generator=generator) * stride - 1


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """The teacher's ε: unconditional + w (conditional - unconditional)."""
    return unconditional + guidance * (conditional - unconditional)


def distillation_loss(
    schedule: NoiseSchedule,
    teacher: Predict,
    student: Predict,
    target: Predict,
    noisy: Tensor,
    t: Tensor,
    huber: float,
) -> tuple[Tensor, Tensor]:
    """The mean loss, and what the student was drawn to [B, C, h, w].

    The guided teacher takes one DDIM step from `noisy` at t to t - k; the student's f there is drawn to the target's f
    after it. Teacher and target get no gradient.
    """
    t_next = t - schedule.config.train_timesteps // schedule.config.origin_steps
    with torch.no_grad():
        previous = ddim_step(schedule, noisy, teacher(noisy, t), t, t_next)
        goal = consistency_function(schedule, previous, target(previous, t_next.clamp(min=0)), t_next)
    jump = consistency_function(schedule, noisy, student(noisy, t), t)
    return pseudo_huber(jump, goal, huber).mean(), goal
