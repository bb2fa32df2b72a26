"""The models around the transformer, from folders as transformers and diffusers save them: T5, VAE, scheduler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import read_folder, read_json
from models.checkpoints.keys import StateDict, assemble, identity
from models.config import LatentConfig, SamplerConfig

T5_FIELDS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
)
# T5 ties the encoder's embedding to the shared one; files carry either or both.
SHARED = "shared.weight"
TIED = "encoder.embed_tokens.weight"
# Encoders are also published inside the whole translation model.
DECODER = ("decoder.", "lm_head.")
# Names of the VAE's attention layers before diffusers 0.18, in which Stable Diffusion's VAE is still published.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_t5(folder: Path) -> tuple[dict[str, Any], StateDict]:
    """T5Config's fields and the state dict of a T5EncoderModel.

    Raises:
        CheckpointError: the folder holds no T5, or its tensors are not those that its config asks for.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "t5":
        raise CheckpointError(f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, not 't5'")
    fields = {name: config[name] for name in T5_FIELDS if name in config} | {"dropout_rate": 0.0}
    tensors = read_folder(folder, ("model", "pytorch_model"))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(DECODER)}
    return fields, assemble_t5(str(folder), tensors, fields)


def assemble_t5(origin: str, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> StateDict:
    """The state dict of a T5EncoderModel, with the shared embedding under both of its names.

    Raises:
        CheckpointError: a tensor is missing, surplus or misshaped.
    """
    with torch.device("meta"):
        expected = T5EncoderModel(T5Config(**fields)).state_dict()
    shared = SHARED if SHARED in tensors or TIED not in tensors else TIED
    plan = identity(expected) | {SHARED: (shared,), TIED: (shared,)}
    return assemble(origin, tensors, plan, expected, ignored=(SHARED, TIED))


def read_vae(folder: Path) -> tuple[dict[str, Any], LatentConfig, StateDict]:
    """AutoencoderKL's config, the normalisation of its latents, and its state dict.

    Raises:
        CheckpointError: the folder holds no AutoencoderKL, or its tensors are not those that its config asks for.
    """
    data = read_json(folder / "config.json")
    if data.get("_class_name") != "AutoencoderKL":
        raise CheckpointError(f"{folder / 'config.json'}: _class_name is {data.get('_class_name')!r}")
    config = {name: value for name, value in data.items() if not name.startswith("_")}
    channels = config.get("latent_channels", 4)
    mean = float(config.get("shift_factor") or 0.0)
    std = 1.0 / float(config.get("scaling_factor", 0.18215))
    latent = LatentConfig(mean=(mean,) * channels, std=(std,) * channels)
    tensors = {_modern(name): tensor for name, tensor in read_folder(folder, ("diffusion_pytorch_model",)).items()}
    return config, latent, assemble_vae(str(folder), tensors, config)


def assemble_vae(origin: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> StateDict:
    """The state dict of an AutoencoderKL.

    Raises:
        CheckpointError: a tensor is missing, surplus or misshaped.
    """
    with torch.device("meta"):
        expected = AutoencoderKL.from_config(dict(config)).state_dict()
    return assemble(origin, tensors, identity(expected), expected)


def read_sampler(folder: Path) -> SamplerConfig:
    """The noise schedule of a diffusers scheduler, and the consistency constants where it is an LCMScheduler.

    Raises:
        CheckpointError: the schedule is not one that PixArt uses.
    """
    path = folder / "scheduler_config.json"
    config = read_json(path)
    for name, wanted in (("beta_schedule", "linear"), ("prediction_type", "epsilon"), ("trained_betas", None)):
        if config.get(name, wanted) != wanted:
            raise CheckpointError(f"{path}: {name} is {config[name]!r}; only {wanted!r} is supported")
    names = {
        "train_timesteps": "num_train_timesteps",
        "beta_start": "beta_start",
        "beta_end": "beta_end",
        "origin_steps": "original_inference_steps",
        "timestep_scaling": "timestep_scaling",
    }
    return SamplerConfig(**{ours: config[theirs] for ours, theirs in names.items() if theirs in config})


def _modern(name: str) -> str:
    head, _, parameter = name.rpartition(".")
    path, _, layer = head.rpartition(".")
    return f"{path}.{OLD_ATTENTION[layer]}.{parameter}" if layer in OLD_ATTENTION and "attentions" in path else name
