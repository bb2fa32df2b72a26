"""LoRA adapters (Hu et al., arXiv 2106.09685) such as LCM-LoRA, merged into the transformer once and for all.

W' = W + scale · (α / r) · B·A for every layer that the adapter names, where A has r rows. Adapters of
diffusers and peft are read, with `lora_A`/`lora_B` or `lora_down`/`lora_up`; α comes from the adapter's
`.alpha` tensors, the file's metadata or an `adapter_config.json`, and is r where none of these says otherwise.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import read_json, read_tensors
from models.checkpoints.keys import SHOWN, StateDict, prefixed, select
from models.checkpoints.naming import DIFFUSERS, drop_variance

# One or several, in any order: PixArt's own training script writes `unet.base_model.model.`.
PREFIXES = re.compile(r"((base_model\.model|transformer|unet)\.)*")
FACTORS = {"lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up"}
FACTOR = re.compile(r"(?P<layer>.+)\.(?P<kind>lora_A|lora_B|lora_down|lora_up)(\.default)?\.weight")
FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class _Update:
    """One layer's factors: `up` [out, r, ...] times `down` [r, in, ...], times `scale`."""

    down: Tensor
    up: Tensor
    scale: float

    def product(self) -> Tensor:
        """float32, two-dimensional; the factors of a convolution are flattened."""
        return self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))


def merge_lora(checkpoint: Checkpoint, path: Path, scale: float = 1.0) -> Checkpoint:
    """`checkpoint` with the adapter of `path` (a file, or a folder that holds one) added at strength `scale`.

    Sums are made in float32 and kept in the base's type. A control branch stays as it is.

    Raises:
        CheckpointError: a tensor of the adapter has no partner, no layer in the model, or the wrong shape.
    """
    updates = _read_updates(path)
    config = checkpoint.config.dit
    state = prefixed("dit.", checkpoint.dit) | _projection(checkpoint.text_encoder)
    for target, sources in DIFFUSERS.layer_plan(config).items():
        if updates.keys().isdisjoint(sources):
            continue
        name = f"{target}.weight"
        merged = state[name].float().clone()
        for share, source in zip(merged.chunk(len(sources)), sources, strict=True):
            if source in updates:
                change = updates.pop(source).product()
                if target == "dit.final.proj":
                    change = drop_variance(change, config)
                if change.shape != share.flatten(1).shape:
                    shapes = f"{tuple(change.shape)} instead of {tuple(share.flatten(1).shape)}"
                    raise CheckpointError(f"{path}: misshaped: {source} is {shapes}")
                share.add_(change.view_as(share), alpha=scale)
        state[name] = merged.to(state[name].dtype)
    if updates:
        raise CheckpointError(f"{path}: surplus: {', '.join(sorted(updates)[:SHOWN])}")
    text_encoder = checkpoint.text_encoder | _projection(state)
    return replace(checkpoint, dit=select("dit.", state), text_encoder=text_encoder)


def _projection(tensors: Mapping[str, Tensor]) -> StateDict:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("projection.")}


def _read_updates(path: Path) -> dict[str, _Update]:
    file = path if path.is_file() else next((path / name for name in FILES if (path / name).is_file()), path / FILES[0])
    tensors = read_tensors(file)
    layers: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        match = FACTOR.fullmatch(name)
        if match:
            layers.setdefault(_layer(match["layer"]), {})[FACTORS[match["kind"]]] = tensor
        elif name.endswith(".alpha") and tensor.numel() == 1:
            alphas[_layer(name.removesuffix(".alpha"))] = float(tensor)
        else:
            raise CheckpointError(f"{file}: surplus: {name} is no part of a LoRA")
    settings = _settings(file)
    updates = {}
    for layer, factors in layers.items():
        if len(factors) != 2:
            raise CheckpointError(f"{file}: missing: {layer} has only its {next(iter(factors))} factor")
        down, up = factors["down"], factors["up"]
        rank = down.shape[0]
        if min(down.ndim, up.ndim) < 2 or up.shape[1] != rank:
            raise CheckpointError(f"{file}: misshaped: {layer} is {tuple(up.shape)} times {tuple(down.shape)}")
        scale = alphas.pop(layer) / rank if layer in alphas else _scale(settings, layer, rank)
        updates[layer] = _Update(down, up, scale)
    if alphas:
        raise CheckpointError(f"{file}: surplus: {', '.join(f'{layer}.alpha' for layer in sorted(alphas)[:SHOWN])}")
    return updates


def _layer(name: str) -> str:
    return PREFIXES.sub("", name, count=1)


def _settings(file: Path) -> dict[str, Any]:
    """peft's settings of the adapter, from the folder or from the header that diffusers writes; empty if none."""
    if (file.parent / "adapter_config.json").is_file():
        return read_json(file.parent / "adapter_config.json")
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            stored = (opened.metadata() or {}).get("lora_adapter_metadata")
        if stored:
            return {_layer(name): value for name, value in json.loads(stored).items()}
    return {}


def _scale(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """α / r, or α / √r for a rank-stabilised adapter; α may differ from layer to layer (`alpha_pattern`)."""
    alpha = float(settings.get("lora_alpha", rank))
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = float(value)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
