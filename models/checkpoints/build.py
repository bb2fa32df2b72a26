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
    config = checkpoint.config
    with torch.device("meta"):
        dit = DiT(config.dit)
        text_encoder = TextEncoder(T5Config(**config.text), config.dit.width)
        vae = AutoencoderKL.from_config(config.vae)
        controlnet = ControlNetTransformer(dit, config.controlnet_depth) if checkpoint.controlnet else None
    _fill(dit, checkpoint.dit, dtype)
    _fill(text_encoder, checkpoint.text_encoder, dtype)
    # Assigned by name, the tied embedding became two parameters.
    text_encoder.t5.encoder.embed_tokens.weight = text_encoder.t5.shared.weight
    _fill(vae, checkpoint.vae, dtype)
    if controlnet is not None and checkpoint.controlnet is not None:
        _fill(controlnet, checkpoint.controlnet, dtype)
    return Modules(dit, text_encoder, vae, controlnet)


def _fill(module: nn.Module, state: StateDict, dtype: torch.dtype) -> None:
    converted: dict[int, torch.Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in converted:
            converted[id(tensor)] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    module.load_state_dict({name: converted[id(tensor)] for name, tensor in state.items()}, assign=True)
    module.eval().requires_grad_(False)
