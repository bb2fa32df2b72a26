"""A tiny PixArt with random weights that fp16 holds exactly, and its bundle: made once for a whole test run."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import T5Config

from engine.backends import names
from models.checkpoints import Checkpoint, save_native
from models.config import DiTConfig, LatentConfig, PixArtConfig, SamplerConfig
from models.controlnet import ControlNetTransformer
from models.dit import DiT
from models.edges import SoftEdge
from models.export import Parts
from models.export.__main__ import main as export
from models.text import TextEncoder

# Those that need no GPU.
RUNNABLE = [name for name in names() if not name.startswith("tensorrt")]
SIZES = ((64, 64), (96, 48))  # width, height
VOCABULARY = 120


def tiny_config(size_conditions: bool = False) -> PixArtConfig:
    blocks = 4
    return PixArtConfig(
        dit=DiTConfig(sample_size=8, depth=3, width=48, heads=3, caption_channels=32, size_conditions=size_conditions),
        sampler=SamplerConfig(),
        latent=LatentConfig(mean=(0.1, -0.2, 0.3, 0.0), std=(1.0, 2.0, 1.5, 0.5)),
        controlnet_depth=2,
        max_tokens=24,
        text={
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_heads": 2,
            "num_layers": 2,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
        },
        vae={
            "down_block_types": ["DownEncoderBlock2D"] * blocks,
            "up_block_types": ["UpDecoderBlock2D"] * blocks,
            "block_out_channels": [8, 8, 16, 16],
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 64,
        },
    )


def tiny_parts(size_conditions: bool = False) -> Parts:
    """Random parts. What training would begin at zero is random too, or else it would test nothing."""
    config = tiny_config(size_conditions)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dit = DiT(config.dit)
        _fill_zeros(dit)
        controlnet = ControlNetTransformer(dit, config.controlnet_depth)
        _fill_zeros(controlnet)
        text_encoder = TextEncoder(T5Config(**config.text), config.dit.width)
        for linear in (text_encoder.projection.fc1, text_encoder.projection.fc2):
            nn.init.normal_(linear.weight, std=0.3)  # at 0.02 no picture would depend on its prompt
        vae = AutoencoderKL(**config.vae)
    for part in (dit, controlnet, text_encoder, vae):
        for parameter in part.requires_grad_(False).eval().parameters():
            parameter.copy_(parameter.half().float())
    return Parts(config, text_encoder, dit, vae, controlnet, SoftEdge())


def _fill_zeros(module: nn.Module) -> None:
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)


def write_tokenizer(path: Path) -> None:
    """A small Unigram tokenizer with T5's special tokens, lower-casing."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    text = ["a red apple on a blue background", "the quick brown fox jumps over the lazy dog 0123456789"]
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    tokenizer.save(str(path))


@cache
def tiny_bundle() -> tuple[Parts, Path]:
    """The tiny parts, and the folder of the bundle that the command makes of them. Do not write into the folder."""
    parts = tiny_parts()
    assert parts.controlnet is not None
    folder = Path(mkdtemp(prefix="tiny-bundle-"))
    with TemporaryDirectory() as scratch:
        tokenizer = Path(scratch) / "tokenizer.json"
        write_tokenizer(tokenizer)
        checkpoint = Checkpoint(
            config=parts.config,
            dit=parts.dit.state_dict(),
            text_encoder=parts.text_encoder.state_dict(),
            vae=parts.vae.state_dict(),
            tokenizer=tokenizer,
            controlnet=parts.controlnet.state_dict(),
        )
        save_native(Path(scratch) / "checkpoint", checkpoint)
        what = ["--weights", str(Path(scratch) / "checkpoint"), "--out", str(folder), "--max-batch", "4"]
        card = ["--name", "tiny", "--licence", "Apache-2.0", "--origin", "random weights"]
        export([*what, *card, *(word for width, height in SIZES for word in ("--size", f"{width}x{height}"))])
    return parts, folder
