"""A model read from disk, whatever its format was."""

from dataclasses import dataclass
from pathlib import Path

from models.checkpoints.keys import StateDict
from models.config import PixArtConfig


@dataclass(frozen=True)
class Checkpoint:
    """Configuration and weights under the names of our own modules.

    Tensors keep the type that they were stored in, and those of safetensors files are still on disk until
    they are used.

    Attributes:
        dit, text_encoder, vae, controlnet: state dicts of `models.dit.DiT`, `models.text.TextEncoder`, diffusers'
            AutoencoderKL and, if there is a control branch, `models.controlnet.ControlNetTransformer`.
        tokenizer: a `tokenizer.json`, or a folder that holds a tokenizer of transformers; see
            `models.checkpoints.tokenizer`.
    """

    config: PixArtConfig
    dit: StateDict
    text_encoder: StateDict
    vae: StateDict
    tokenizer: Path
    controlnet: StateDict | None = None
