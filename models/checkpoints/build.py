"""Modules from a checkpoint, without a second copy of its weights."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import T5Config

from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.keys import StateDict
from models.controlnet import ControlNetTransformer
from models.dit import DiT
from models.text import TextEncoder


@dataclass(frozen=True)
class Modules:
    """A checkpoint's modules, in evaluation mode."""

    dit: DiT
    text_encoder: TextEncoder
    vae: AutoencoderKL
    controlnet: ControlNetTransformer | None


def build(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Modules:
    """The modules of `checkpoint`, with floating tensors as `dtype`.

    Tensors that are of that type already are used where they are, on disk too.
    """
    dit = build_dit(checkpoint, dtype)
    text_encoder, vae = build_text_encoder(checkpoint, dtype), build_vae(checkpoint, dtype)
    controlnet = None
    if checkpoint.controlnet is not None:
        with torch.device("meta"):
            controlnet = ControlNetTransformer(DiT(checkpoint.config.dit), checkpoint.config.controlnet_depth)
        _fill(controlnet, checkpoint.controlnet, dtype)
    return Modules(dit, text_encoder, vae, controlnet)


def build_dit(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> DiT:
    """The transformer alone; see `build`."""
    with torch.device("meta"):
        dit = DiT(checkpoint.config.dit)
    _fill(dit, checkpoint.dit, dtype)
    return dit


def build_text_encoder(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """T5 and the caption projection alone; see `build`."""
    with torch.device("meta"):
        text_encoder = TextEncoder(T5Config(**checkpoint.config.text), checkpoint.config.dit.width)
    _fill(text_encoder, checkpoint.text_encoder, dtype)
    # Assigned by name, the tied embedding became two parameters.
    text_encoder.t5.encoder.embed_tokens.weight = text_encoder.t5.shared.weight
    return text_encoder


def build_vae(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The autoencoder alone; see `build`."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(checkpoint.config.vae)
    _fill(vae, checkpoint.vae, dtype)
    return vae


def _fill(module: nn.Module, state: StateDict, dtype: torch.dtype) -> None:
    converted: dict[int, torch.Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in converted:
            converted[id(tensor)] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    module.load_state_dict({name: converted[id(tensor)] for name, tensor in state.items()}, assign=True)
    module.eval().requires_grad_(False)
