"""The autoencoder's two halves, from and to 8-bit pictures.

Both hold the parts of a diffusers AutoencoderKL under its own parameter names, so that one checkpoint
serves both and neither needs the other's weights.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from models.config import LatentConfig


class _Half(nn.Module):
    """Normalisation constants, [1, C, 1, 1]; they belong to the configuration, not to the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, latent: LatentConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(latent.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(latent.std).view(1, -1, 1, 1), persistent=False)


class VaeDecoder(_Half):
    """Normalised latents [B, C, h, w] to pictures uint8 [B, 8h, 8w, 3]."""

    def __init__(self, vae: AutoencoderKL, latent: LatentConfig) -> None:
        super().__init__(latent)
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        raw = latents * self.std + self.mean
        if self.post_quant_conv is not None:
            raw = self.post_quant_conv(raw)
        picture = self.decoder(raw) * 127.5 + 127.5
        return picture.round().clamp(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)


class VaeEncoder(_Half):
    """Pictures uint8 [B, H, W, 3] to normalised latents [B, C, H/8, W/8]: the posterior's mean, no sampling."""

    def __init__(self, vae: AutoencoderKL, latent: LatentConfig) -> None:
        super().__init__(latent)
        self.encoder = vae.encoder
        self.quant_conv = vae.quant_conv

    def forward(self, image: Tensor) -> Tensor:
        picture = image.permute(0, 3, 1, 2).to(self.mean.dtype) / 127.5 - 1.0
        moments = self.encoder(picture)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return (moments.chunk(2, dim=1)[0] - self.mean) / self.std
