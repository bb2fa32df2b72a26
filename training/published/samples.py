"""Pictures of a run's progress."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.config import LatentConfig
from models.vae import VaeDecoder


class Decoder:
    """Decodes latents one by one, so that 1024 × 1024 pixels need little memory beside the training's."""

    def __init__(self, vae: AutoencoderKL, latent: LatentConfig, device: torch.device) -> None:
        self.decoder = VaeDecoder(vae, latent).to(device)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, h, w] → pictures [B, 3, 8h, 8w] in -1..1."""
        pictures = torch.cat([self.decoder(one) for one in latents.split(1)])
        return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
