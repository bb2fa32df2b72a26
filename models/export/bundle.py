"""Write a bundle: weights once, one graph a module, the tokenizer, and a manifest that vouches for all of it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from models.config import PixArtConfig, to_json
from models.export.graph import ModulePlan, write_graph
from models.export.modules import Parts, plan_modules
from models.export.source import sha256_of
from models.export.weights import save_weights

FORMAT_VERSION = 1
IMAGE_SCALE = 8  # image pixels per latent pixel
TOKEN_MULTIPLE = 8
MAX_STEPS = 8


@dataclass(frozen=True)
class Card:
    """What the manifest says about the model beyond its shape. `licence` is an SPDX expression.

    `sizes` are the allowed image sizes (width, height) in pixels, the first one being the default; empty means the
    square that the model was trained at. `max_batch` bounds the samples in one call of any module.
    """

    name: str
    licence: str
    origin: str
    sizes: tuple[tuple[int, int], ...] = ()
    max_batch: int = 8
    default_steps: int = 4


def export_bundle(
    parts: Parts, tokenizer: Path, folder: Path, card: Card, dtype: torch.dtype = torch.float16
) -> dict[str, Any]:
    """Write the bundle of `parts` to `folder`, weights stored as `dtype`; returns the manifest.

    `tokenizer` is a `tokenizer.json`, which has to do all text normalisation. Other files in `folder` are left alone;
    a README.md there becomes part of the bundle.

    Raises:
        ValueError: an image size does not divide into patches.
        CheckpointError: a weight does not fit into `dtype`.
    """
    config = parts.config
    sizes = card.sizes or ((config.dit.sample_size * IMAGE_SCALE,) * 2,)
    dimensions = _dimensions(config, sizes, card.max_batch)
    folder.mkdir(parents=True, exist_ok=True)
    index = save_weights(parts.weight_files(), folder, dtype)
    # Values to trace with: all different, and none that a later size would have to share.
    patch = config.dit.patch_size
    examples = {"B": 2, "L": 11, "H": 3 * patch, "W": 5 * patch, "N": 15}
    modules = {plan.name: _module(plan, write_graph(plan, index, examples, folder)) for plan in plan_modules(parts)}
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    files = ["tokenizer.json", *(["README.md"] if (folder / "README.md").exists() else [])]
    for module in modules.values():
        files += [module["graph"], *module["weights"]]
    default, *_ = allowed = [{"width": width, "height": height} for width, height in sizes]
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": card.name,
        "licence": card.licence,
        "origin": card.origin,
        "model": to_json(config),
        "sampler": asdict(config.sampler),
        "positions": {
            "width": config.dit.width,
            "patch_size": patch,
            "base_size": config.dit.base_size,
            "interpolation_scale": config.dit.interpolation_scale,
        },
        "size_conditions": config.dit.size_conditions,
        "max_tokens": config.max_tokens,
        "steps": {"default": card.default_steps, "min": 1, "max": MAX_STEPS},
        "images": {"default": default, "allowed": allowed},
        "dimensions": dimensions,
        "modules": modules,
        "files": {name: _entry(folder / name) for name in sorted(set(files))},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _dimensions(config: PixArtConfig, sizes: Sequence[tuple[int, int]], max_batch: int) -> dict[str, dict[str, int]]:
    """The range of each symbol over all allowed sizes and prompts; prompts are padded to a multiple of 8 tokens."""
    patch = config.dit.patch_size
    for width, height in sizes:
        if min(width, height) < 1 or width % (IMAGE_SCALE * patch) or height % (IMAGE_SCALE * patch):
            raise ValueError(f"image size {width}x{height} is not a multiple of {IMAGE_SCALE * patch}")
    widths, heights = zip(*((width // IMAGE_SCALE, height // IMAGE_SCALE) for width, height in sizes), strict=True)
    longest = -(-config.max_tokens // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    tokens = [width * height // patch**2 for width, height in zip(widths, heights, strict=True)]
    return {
        "B": {"min": 1, "max": max_batch},
        "L": {"min": TOKEN_MULTIPLE, "max": longest, "multiple": TOKEN_MULTIPLE},
        "H": {"min": min(heights), "max": max(heights), "multiple": patch},
        "W": {"min": min(widths), "max": max(widths), "multiple": patch},
        "N": {"min": min(tokens), "max": max(tokens)},
    }


def _module(plan: ModulePlan, weights: tuple[str, ...]) -> dict[str, Any]:
    tensors = {
        kind: [{"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)} for tensor in group]
        for kind, group in (("inputs", plan.inputs), ("outputs", plan.outputs))
    }
    return {"graph": f"{plan.name}.onnx", "weights": list(weights), **tensors}


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}
