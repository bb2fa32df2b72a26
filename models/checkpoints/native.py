"""Our own layout: `config.json`, `tokenizer.json` and one safetensors file for each part under `weights/`.

Bundles hold the same weight files and, in `manifest.json`, the same configuration, so they can be read as
checkpoints too.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.components import assemble_t5, assemble_vae
from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import read_json, read_tensors
from models.checkpoints.keys import StateDict, assemble, identity, prefixed, select
from models.checkpoints.naming import expected_transformer
from models.checkpoints.tokenizer import write_tokenizer
from models.checkpoints.writer import write_safetensors
from models.config import PixArtConfig, from_json, to_json
from models.controlnet import ControlNetTransformer
from models.dit import DiT

CONFIG = "config.json"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


def is_native(folder: Path) -> bool:
    """Whether `folder` has this layout."""
    return (folder / _weights("dit")).is_file()


def load_native(folder: Path) -> Checkpoint:
    """The checkpoint, or the bundle's weights, in `folder`.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing, surplus or misshaped.
    """
    config = _read_config(folder)
    expected = expected_transformer(config.dit)
    text = _read_part(folder, "text_encoder")
    origin = str(folder / _weights("text_encoder"))
    t5 = assemble_t5(origin, select("t5.", text), config.text)
    projection = _exact(origin, _without("t5.", text), _under("projection.", expected))
    vae = assemble_vae(str(folder / _weights("vae")), _read_part(folder, "vae"), config.vae)
    return Checkpoint(
        config,
        dit=_exact(str(folder / _weights("dit")), _read_part(folder, "dit"), select("dit.", expected)),
        text_encoder=prefixed("t5.", t5) | projection,
        vae=vae,
        tokenizer=folder / TOKENIZER,
        controlnet=_read_controlnet(folder, config) if config.controlnet_depth else None,
    )


def save_native(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float16) -> None:
    """Write `checkpoint` to `folder`, floating tensors as `dtype`, one tensor in memory at a time.

    Raises:
        CheckpointError: a value does not fit into `dtype`, or the tokenizer cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(checkpoint.config), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    write_tokenizer(checkpoint.tokenizer, folder / TOKENIZER)
    parts = {"dit": checkpoint.dit, "text_encoder": checkpoint.text_encoder, "vae": checkpoint.vae}
    if checkpoint.controlnet is not None:
        parts["controlnet"] = checkpoint.controlnet
    for part, state in parts.items():
        write_safetensors(folder / _weights(part), state, dtype)


def _weights(part: str) -> str:
    return f"weights/{part}.safetensors"


def _read_config(folder: Path) -> PixArtConfig:
    if (folder / CONFIG).is_file():
        path, data = folder / CONFIG, read_json(folder / CONFIG)
    else:
        path, data = folder / MANIFEST, read_json(folder / MANIFEST).get("model", {})
    try:
        return from_json(data)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_part(folder: Path, part: str) -> StateDict:
    return read_tensors(folder / _weights(part))


def _read_controlnet(folder: Path, config: PixArtConfig) -> StateDict:
    with torch.device("meta"):
        expected = ControlNetTransformer(DiT(config.dit), config.controlnet_depth).state_dict()
    return _exact(str(folder / _weights("controlnet")), _read_part(folder, "controlnet"), expected)


def _exact(origin: str, tensors: StateDict, expected: StateDict) -> StateDict:
    return assemble(origin, tensors, identity(expected), expected)


def _under(prefix: str, tensors: StateDict) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _without(prefix: str, tensors: StateDict) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
