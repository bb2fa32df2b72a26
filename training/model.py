"""The demo model's parts, built from a recipe."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import T5Config

from models.config import DiTConfig, LatentConfig, PixArtConfig, SamplerConfig
from models.dit import DiT
from models.positions import sincos_positions
from models.text import TextEncoder
from training.vae import VaeConfig, build


@dataclass(frozen=True)
class TextShape:
    """Size of the T5 encoder; the architecture is T5 v1.1's (gated GELU, relative positions)."""

    width: int = 256
    heads: int = 4
    layers: int = 3
    mlp: int = 512
    vocabulary: int = 6000


@dataclass(frozen=True)
class ModelShape:
    """Sizes and sampler constants of a PixArt model that is trained from nothing."""

    width: int = 256
    depth: int = 10
    heads: int = 4
    controlnet_depth: int = 5
    max_tokens: int = 120
    beta_end: float = 0.02
    text: TextShape = TextShape()


def t5_config(shape: TextShape) -> dict[str, Any]:
    """The fields that transformers' T5 encoder needs."""
    return {
        "vocab_size": shape.vocabulary,
        "d_model": shape.width,
        "d_kv": shape.width // shape.heads,
        "d_ff": shape.mlp,
        "num_heads": shape.heads,
        "num_layers": shape.layers,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    }


def pixart_config(shape: ModelShape, vae: VaeConfig, latent: LatentConfig, size: int) -> PixArtConfig:
    """The full description of the demo model, as its checkpoint and bundle carry it."""
    vae_config = {key: value for key, value in build(vae, size).config.items() if not key.startswith("_")}
    return PixArtConfig(
        dit=DiTConfig(
            sample_size=size // 8,
            depth=shape.depth,
            width=shape.width,
            heads=shape.heads,
            caption_channels=shape.text.width,
        ),
        sampler=SamplerConfig(beta_end=shape.beta_end),
        latent=latent,
        controlnet_depth=shape.controlnet_depth,
        max_tokens=shape.max_tokens,
        text=t5_config(shape.text),
        vae=vae_config,
    )


class TextToLatents(nn.Module):
    """Text encoder and DiT together: the part that is trained from captions and latents."""

    text: TextEncoder
    dit: DiT
    position: Tensor

    def __init__(self, shape: ModelShape, size: int) -> None:
        super().__init__()
        side = size // 8
        config = DiTConfig(
            sample_size=side,
            depth=shape.depth,
            width=shape.width,
            heads=shape.heads,
            caption_channels=shape.text.width,
        )
        self.text = TextEncoder(T5Config(**t5_config(shape.text)), shape.width)
        self.dit = DiT(config)
        position = sincos_positions(side // 2, side // 2, shape.width, side // 2, 1.0)
        self.register_buffer("position", position, persistent=False)

    def forward(self, latents: Tensor, timestep: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """ε for latents [B, 4, h, w] at timesteps [B] under captions ids and mask [B, L]."""
        return self.dit(latents, timestep, self.text(ids, mask), mask, self.position)
