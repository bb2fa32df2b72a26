"""Pipelines as diffusers saves them: a folder with transformer, text_encoder, vae, tokenizer and scheduler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.components import read_sampler, read_t5, read_vae
from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import read_folder, read_json
from models.checkpoints.keys import StateDict, assemble, prefixed, select
from models.checkpoints.naming import DIFFUSERS, drop_variance, expected_transformer
from models.config import DiTConfig, PixArtConfig

# What PixArt's transformer is; a config that says otherwise describes another network.
FIXED = {
    "norm_type": "ada_norm_single",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "attention_type": "default",
}
# The caption of an empty prompt, which published files keep: only guidance needs it, and diffusers does not load it.
NULL_CAPTION = "caption_projection.y_embedding"


def read_diffusers(folder: Path) -> Checkpoint:
    """The whole pipeline in `folder`.

    Raises:
        CheckpointError: a part is missing, unreadable, or not a part of a PixArt model.
    """
    dit_config, dit, projection = read_transformer(folder / "transformer")
    text_config, t5 = read_t5(folder / "text_encoder")
    vae_config, latent, vae = read_vae(folder / "vae")
    config = PixArtConfig(
        dit=dit_config, sampler=read_sampler(folder / "scheduler"), latent=latent, text=text_config, vae=vae_config
    )
    text_encoder = prefixed("t5.", t5) | prefixed("projection.", projection)
    return Checkpoint(config, dit, text_encoder, vae, tokenizer=folder / "tokenizer")


def read_transformer(folder: Path) -> tuple[DiTConfig, StateDict, StateDict]:
    """Configuration, DiT and caption projection of a saved PixArtTransformer2DModel (or Transformer2DModel).

    Raises:
        CheckpointError: the configuration or a tensor is not PixArt's.
    """
    path = folder / "config.json"
    config = transformer_config(read_json(path), str(path))
    tensors = read_folder(folder, ("diffusion_pytorch_model",))
    for name in ("proj_out.weight", "proj_out.bias"):
        if name in tensors:
            tensors[name] = drop_variance(tensors[name], config)
    plan, expected = DIFFUSERS.plan(config), expected_transformer(config)
    state = assemble(str(folder), tensors, plan, expected, ignored=(NULL_CAPTION,))
    return config, select("dit.", state), select("projection.", state)


def transformer_config(data: Mapping[str, Any], origin: str) -> DiTConfig:
    """DiTConfig of the config.json of diffusers' transformer; `origin` names it in messages.

    Two values follow from the resolution where they are left out, as in diffusers: the positions'
    interpolation scale is sample_size / 64, at least 1; size conditions exist exactly at sample_size 128.

    Raises:
        CheckpointError: a value is missing, or means a network that is not PixArt's.
    """
    missing = [
        name
        for name in ("sample_size", "num_layers", "num_attention_heads", "attention_head_dim", "caption_channels")
        if data.get(name) is None
    ]
    if missing:
        raise CheckpointError(f"{origin}: has no {', '.join(missing)}")
    width = data["num_attention_heads"] * data["attention_head_dim"]
    for name, wanted in {**FIXED, "cross_attention_dim": width}.items():
        if data.get(name, wanted) != wanted:
            raise CheckpointError(f"{origin}: {name} is {data[name]!r}; PixArt has {wanted!r}")
    size = data["sample_size"]
    scale = data.get("interpolation_scale")
    conditions = data.get("use_additional_conditions")
    return DiTConfig(
        sample_size=size,
        depth=data["num_layers"],
        width=width,
        heads=data["num_attention_heads"],
        patch_size=data.get("patch_size", 2),
        in_channels=data.get("in_channels", 4),
        caption_channels=data["caption_channels"],
        interpolation_scale=float(max(size // 64, 1) if scale is None else scale),
        size_conditions=size == 128 if conditions is None else bool(conditions),
    )
