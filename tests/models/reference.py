"""What the parity tests share: random weights that leave nothing at zero, and the tolerance."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import T5Config

from models.checkpoints.diffusers import read_transformer
from models.config import DiTConfig
from models.dit import DiT
from models.positions import sincos_positions
from models.text import CaptionProjection

Module = TypeVar("Module", bound=nn.Module)

TOLERANCE = 1e-4  # of the largest value of the expected output

T5_TINY = T5Config(
    vocab_size=100,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_heads=4,
    num_layers=3,
    feed_forward_proj="gated-gelu",
    dropout_rate=0.0,
)


def randomise(module: Module) -> Module:
    """Draw every parameter anew: what training begins at zero would let a wrong network pass.

    Matrices keep the size of activations; vectors move around what they were (0 for a bias, 1 for a norm's weight).
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    module.requires_grad_(False).eval()
    return module


def assert_close(actual: Tensor, expected: Tensor | np.ndarray, tolerance: float = TOLERANCE) -> None:
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    scale = expected.abs().max().item()
    assert scale > 0.01, "an output of zeros proves nothing"
    error = (actual - expected).abs().max().item()
    print(f"max |Δ| = {error:.2e}, scale {scale:.2e}")
    assert error <= tolerance * scale


def diffusers_pair(folder: Path, **changes: Any) -> tuple[PixArtTransformer2DModel, DiT, CaptionProjection]:
    """diffusers' transformer with random weights, and ours with the same, read from a saved folder."""
    sizes = {
        "sample_size": 16,
        "num_layers": 3,
        "num_attention_heads": 4,
        "attention_head_dim": 12,
        "cross_attention_dim": 48,
        "caption_channels": 32,
    }
    theirs = randomise(PixArtTransformer2DModel(**{**sizes, **changes}))
    theirs.save_pretrained(folder)
    config, dit_state, projection_state = read_transformer(folder)
    ours, projection = DiT(config), CaptionProjection(config.caption_channels, config.width)
    ours.load_state_dict(dit_state)
    projection.load_state_dict(projection_state)
    return theirs, ours.requires_grad_(False).eval(), projection.requires_grad_(False).eval()


def random_dit(**changes: Any) -> DiT:
    config = DiTConfig(**{"sample_size": 8, "depth": 4, "width": 24, "heads": 2, "caption_channels": 16, **changes})
    return randomise(DiT(config))


def dit_inputs(config: DiTConfig, batch: int, height: int, width: int, tokens: int) -> dict[str, Tensor]:
    """Random arguments of `DiT.forward`; ragged masks, every sample at its own timestep."""
    lengths = torch.randint(1, tokens + 1, (batch,))
    lengths[0] = tokens
    position = sincos_positions(
        height // config.patch_size,
        width // config.patch_size,
        config.width,
        config.base_size,
        config.interpolation_scale,
    )
    inputs = {
        "latents": torch.randn(batch, config.in_channels, height, width),
        "timestep": torch.randint(0, 1000, (batch,)),
        "caption": torch.randn(batch, tokens, config.width),
        "mask": torch.arange(tokens)[None] < lengths[:, None],
        "position": position,
    }
    if config.size_conditions:
        inputs["resolution"] = torch.randint(256, 2048, (batch, 2)).float()
        inputs["aspect_ratio"] = torch.rand(batch, 1) * 3.75 + 0.25
    return inputs


def samples(inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The same inputs, one sample at a time."""
    for index in range(len(inputs["latents"])):
        yield {name: value if name == "position" else value[index : index + 1] for name, value in inputs.items()}


def random_vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    return randomise(vae)
