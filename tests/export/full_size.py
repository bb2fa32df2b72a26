"""PixArt-XL/2 with 13 control blocks and Stable Diffusion's autoencoder, at full size with random weights, as a bundle.

`python -m tests.export.full_size FOLDER` writes it, and prints the peak of its memory in bytes. The text encoder is
tiny: T5-XXL would add nothing but time.
"""

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import T5Config

from benchmarks.fullsize import SD_VAE
from models.config import DiTConfig, LatentConfig
from models.controlnet import ControlNetTransformer
from models.dit import DiT
from models.edges import SoftEdge
from models.export import Card, Parts, export_bundle
from models.text import TextEncoder
from tests.export.tiny import tiny_config, write_tokenizer


def write_bundle(folder: Path, control: bool) -> None:
    """Export it, allowing 512x512 and 1024x1024 pixels and four samples."""
    torch.manual_seed(0)
    dit_config = DiTConfig(sample_size=128, interpolation_scale=2.0)
    config = replace(
        tiny_config(),
        dit=dit_config,
        latent=LatentConfig(mean=(0.0,) * 4, std=(1 / 0.18215,) * 4),
        controlnet_depth=13 if control else 0,
        vae=SD_VAE,
    )
    dit = DiT(dit_config).requires_grad_(False)
    for parameter in dit.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    branch = ControlNetTransformer(dit, 13).requires_grad_(False) if control else None
    for parameter in branch.parameters() if branch else ():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)  # a trained branch is no copy, which would be kept once
    parts = Parts(
        config,
        TextEncoder(T5Config(**config.text), dit_config.width).requires_grad_(False),
        dit,
        AutoencoderKL(**SD_VAE).requires_grad_(False),
        branch,
        SoftEdge() if control else None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.parent / "tokenizer.json"
    write_tokenizer(tokenizer)
    sizes = ((512, 512), (1024, 1024))
    export_bundle(parts, tokenizer, folder, Card("full-size", "Apache-2.0", "random weights", sizes, 4))


if __name__ == "__main__":
    write_bundle(Path(sys.argv[1]), control=sys.argv[2:] == ["--control"])
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
