"""What the control branch is told about its own pictures' edges.

Pixel-level cycle consistency of ControlNet++ (Li et al., 2024): decode the predicted picture, find its
edges, and compare them with those that were asked for. The loss in latents alone averages thin lines away.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.config import LatentConfig
from models.edges import SoftEdge


def soft_edges(colors: Tensor, detector: SoftEdge) -> Tensor:
    """Differentiable edge maps [B, H, W] in 0..1 of colours [B, 3, H, W] in 0..1: `SoftEdge` without its rounding.

    The root is taken a little above zero: on plain areas its slope would be infinite.
    """
    squares = detector.derivatives(colors).square().sum(dim=2)
    return ((squares + 1e-6).sqrt().amax(dim=1) * detector.gain).clamp(max=1.0)


class EdgeFeedback:
    """Mean absolute difference between asked edges and those of decoded latents; the decoder is not trained."""

    def __init__(self, vae: AutoencoderKL, latent: LatentConfig) -> None:
        self.vae = vae
        self.detector = SoftEdge()
        self.mean = torch.tensor(latent.mean)[:, None, None]
        self.std = torch.tensor(latent.std)[:, None, None]

    def __call__(self, latents: Tensor, asked: Tensor) -> Tensor:
        """Loss [B] of clean normalised latents [B, C, h, w] against asked edges, uint8 [B, H, W]."""
        pictures = self.vae.decode(latents * self.std + self.mean).sample
        drawn = soft_edges((pictures + 1) / 2, self.detector)
        return (drawn - asked / 255).abs().flatten(1).mean(dim=1)
