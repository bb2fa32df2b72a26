"""Noise schedule and latent consistency sampling.

Source: Luo et al., "Latent Consistency Models" (arXiv 2310.04378), §3-4 and algorithm 3; PixArt-δ
(arXiv 2401.05252), §3. The network predicts ε. Tables are computed in float64 and kept in float32.
"""

import torch
from torch import Tensor

from models.config import SamplerConfig


class NoiseSchedule:
    """x_t = α_t·x_0 + σ_t·ε with α_t = √ᾱ_t, σ_t = √(1-ᾱ_t) and evenly spaced betas.

    Timesteps are integers 0..train_timesteps-1; tensors of them have shape [B].
    """

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config
        betas = torch.linspace(config.beta_start, config.beta_end, config.train_timesteps, dtype=torch.float64)
        self._exact = torch.cumprod(1.0 - betas, dim=0)
        self.alphas_cumprod = self._exact.float()
        self.alphas = self._exact.sqrt().float()
        # From float64: 1 - ᾱ of a rounded ᾱ near 1 would lose four digits.
        self.sigmas = (1.0 - self._exact).sqrt().float()

    def _at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t, shaped to multiply `like`."""
        shape = (-1, *[1] * (like.ndim - 1))
        index = t.to(self.alphas.device)
        return tuple(table[index].to(like.device).view(shape) for table in (self.alphas, self.sigmas))  # type: ignore[return-value]

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for clean samples `x0` and `noise` of shape [B, ...]."""
        alpha, sigma = self._at(t, x0)
        return alpha * x0 + sigma * noise

    def predict_x0(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_0 that `eps` implies: (x_t - σ_t·ε) / α_t, shape [B, ...]."""
        alpha, sigma = self._at(t, x_t)
        return (x_t - sigma * eps) / alpha

    def boundary_scalings(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out), each like `t` in float32, such that c_skip(0) = 1 and c_out(0) = 0.

        c_skip = σ_d² / ((s·t)² + σ_d²), c_out = s·t / √((s·t)² + σ_d²).
        """
        scaled = t.double() * self.config.timestep_scaling
        norm = scaled.square() + self.config.sigma_data**2
        return (self.config.sigma_data**2 / norm).float(), (scaled / norm.sqrt()).float()

    def timesteps(self, steps: int) -> list[int]:
        """The timesteps that `steps` consistency steps visit, noisiest first, evenly from the distillation grid.

        Raises:
            ValueError: `steps` is not between 1 and `origin_steps`.
        """
        origin = self.config.origin_steps
        if not 1 <= steps <= origin:
            raise ValueError(f"steps must be in 1..{origin}, not {steps}")
        stride = self.config.train_timesteps // origin
        return [stride * (origin - i * origin // steps) - 1 for i in range(steps)]

    def coefficients(self, t: int, t_next: int | None) -> Tensor:
        """(1/α_t, σ_t/α_t, c_skip, c_out, α_next, σ_next) of the step from `t` to `t_next`, float32 [6].

        After the last step (`t_next` is None) the sample is x0 itself: α_next = 1, σ_next = 0.
        """
        alpha, sigma = self._exact[t].sqrt(), (1.0 - self._exact[t]).sqrt()
        after = self._exact.new_tensor(1.0) if t_next is None else self._exact[t_next]
        c_skip, c_out = self.boundary_scalings(torch.tensor(t))
        return torch.stack([1.0 / alpha, sigma / alpha, c_skip, c_out, after.sqrt(), (1.0 - after).sqrt()]).float()


def consistency_step(latents: Tensor, eps: Tensor, coefficients: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One step of multistep consistency sampling: (next latents, x0), each [B, C, H, W].

    Every sample has its own row of `coefficients` [B, 6] (see `NoiseSchedule.coefficients`), so a batch
    may hold samples at different steps:
    x0 = c_skip·x + c_out·(x/α_t - ε·σ_t/α_t); next = α_next·x0 + σ_next·noise.
    """
    inv_alpha, ratio, c_skip, c_out, alpha_next, sigma_next = coefficients[:, :, None, None, None].unbind(1)
    x0 = c_skip * latents + c_out * (latents * inv_alpha - eps * ratio)
    return alpha_next * x0 + sigma_next * noise, x0
