"""PixArt-δ at its published sizes, without weights or with random ones, and its graphs.

Blocks of a transformer are equal, so graphs of a few blocks say what any number of them costs.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import cast

import onnx_ir as ir
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import T5Config

from benchmarks.counting import ConcreteGraph, Count
from engine.backends import Source
from engine.manifest import DimensionRange, DType, ModuleSpec, TensorSpec
from models.config import DiTConfig, LatentConfig, PixArtConfig, SamplerConfig
from models.controlnet import ControlNetTransformer
from models.dit import DiT
from models.export.graph import write_graph
from models.export.modules import Parts, plan_modules
from models.export.weights import StoredTensor, WeightIndex, save_weights
from models.hed import HED
from models.text import TextEncoder

T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}
SD_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
}
CONTROL_DEPTH = 13


def full_config(pixels: int = 1024) -> PixArtConfig:
    """PixArt-δ XL/2 with its 13-block control branch at 512 or 1024 pixels."""
    large = pixels == 1024
    return PixArtConfig(
        dit=DiTConfig(sample_size=pixels // 8, interpolation_scale=2.0 if large else 1.0, size_conditions=large),
        sampler=SamplerConfig(),
        latent=LatentConfig(mean=(0.0,) * 4, std=(1 / 0.18215,) * 4),
        text=T5_XXL,
        vae=SD_VAE,
        controlnet_depth=CONTROL_DEPTH,
        max_tokens=120,
    )


def shorten(config: PixArtConfig, depth: int, control: int, layers: int) -> PixArtConfig:
    """The same widths with fewer transformer blocks, control blocks and text layers."""
    dit = replace(config.dit, depth=depth)
    return replace(config, dit=dit, controlnet_depth=control, text=config.text | {"num_layers": layers})


def meta_parts(config: PixArtConfig) -> Parts:
    """All parts of a model, shapes without numbers."""
    with torch.device("meta"):
        dit = DiT(config.dit)
        parts = Parts(
            config,
            TextEncoder(T5Config(**config.text), config.dit.width),
            dit,
            AutoencoderKL(**config.vae),
            ControlNetTransformer(dit, config.controlnet_depth),
            HED(),
        )
    for part in parts.weight_files().values():
        part.eval().requires_grad_(False)
    return parts


def write_graphs(parts: Parts, folder: Path, names: Collection[str]) -> dict[str, Path]:
    """Export the named modules of `parts` from `meta_parts`; returns the graphs' files.

    The graphs point into weight files of the right lengths with holes instead of numbers: they can be counted and
    checked, and take no room on the disk.
    """
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    for part in parts.weight_files().values():
        part.to_empty(device="cpu")  # address space alone: nothing is written to it, so it takes no memory
    index = WeightIndex()
    for file, part in parts.weight_files().items():
        end = 0
        for tensor in part.state_dict(keep_vars=True).values():
            if tensor not in index:
                length = 2 * tensor.numel()
                index.add(tensor, StoredTensor(file, end, length, ir.DataType.FLOAT16, tuple(tensor.shape)))
                end += length
        with (folder / file).open("wb") as stream:
            stream.truncate(end)
    plans = [plan for plan in plan_modules(parts) if plan.name in names]
    for plan in plans:
        write_graph(plan, index, _examples(parts.config), folder)
    return {plan.name: folder / f"{plan.name}.onnx" for plan in plans}


def randomise(part: nn.Module, seed: int = 0) -> None:
    """Give a part from `meta_parts` random weights that fp16 holds exactly, of sizes that keep activations near one."""
    part.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in part.state_dict(keep_vars=True).items():
        with torch.no_grad():
            if tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
            else:
                tensor.normal_(mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.02)
            tensor.copy_(tensor.half())


def random_sources(parts: Parts, folder: Path, names: Collection[str]) -> dict[str, Source]:
    """Export the named modules of `parts` from `meta_parts` with random weights, as a backend takes them.

    Only the weights that the modules need come into memory and onto the disk; `parts` then has them too.
    """
    plans = [plan for plan in plan_modules(parts) if plan.name in names]
    needed = {id(tensor) for plan in plans for tensor in plan.module.state_dict(keep_vars=True).values()}
    files = {}
    for file, part in parts.weight_files().items():
        if any(id(tensor) in needed for tensor in part.state_dict(keep_vars=True).values()):
            files[file] = part
    for part in files.values():
        randomise(part)
    # The plans are made anew, since the parts' tensors are others now.
    plans = [plan for plan in plan_modules(parts) if plan.name in names]
    index = save_weights(files, folder, torch.float16)
    ranges = {symbol: DimensionRange(min=1, max=8192) for symbol in "BLHWN"}
    found = {}
    for plan in plans:
        weights = write_graph(plan, index, _examples(parts.config), folder)
        tensors = [
            tuple(TensorSpec(name=tensor.name, dtype=cast(DType, tensor.dtype), shape=tensor.shape) for tensor in group)
            for group in (plan.inputs, plan.outputs)
        ]
        spec = ModuleSpec(graph=f"{plan.name}.onnx", weights=weights, inputs=tensors[0], outputs=tensors[1])
        found[plan.name] = Source(folder / spec.graph, spec, ranges, f"random {plan.name} {parts.config}")
    return found


def _examples(config: PixArtConfig) -> dict[str, int]:
    """Values of the symbols to trace with."""
    patch = config.dit.patch_size
    return {"B": 2, "L": 11, "H": 3 * patch, "W": 5 * patch, "N": 15}


class FullSize:
    """Counts and peaks of the full-size modules, from graphs of one to three blocks that `folder` keeps.

    A graph that is already in `folder` is used again, since exporting takes up to a minute each.
    """

    def __init__(self, folder: Path, pixels: int = 1024) -> None:
        self.config = full_config(pixels)
        self._folder = folder
        self._cache: dict[tuple[Path, int], ConcreteGraph] = {}

    def graph(self, name: str, pixels: int, depth: int = 2, control: int = 1, layers: int = 1) -> ConcreteGraph:
        """The module's graph with so many blocks, at a picture of `pixels`²; batch 1, the longest prompt."""
        folder = self._folder / f"{depth}-{control}-{layers}"
        path = folder / f"{name}.onnx"
        if not path.exists():
            write_graphs(meta_parts(shorten(self.config, depth, control, layers)), folder, [name])
        if (path, pixels) not in self._cache:
            self._cache[path, pixels] = ConcreteGraph(path, sizes_at(pixels, pixels, self.config.max_tokens))
        return self._cache[path, pixels]

    def count(self, name: str, pixels: int) -> Count:
        """What the module costs at its full depth."""
        config = self.config
        if name == "text_encoder":
            one, two = (self.graph(name, pixels, layers=layers).count() for layers in (1, 2))
            return one + (two - one) * (config.text["num_layers"] - 1)
        if name == "denoiser":
            two, three = (self.graph(name, pixels, depth=depth).count() for depth in (2, 3))
            return two + (three - two) * (config.dit.depth - 2)
        if name == "denoiser_control":
            one, two = (self.graph(name, pixels, depth=3, control=control).count() for control in (1, 2))
            base = self.count("denoiser", pixels) - self.graph("denoiser", pixels, depth=3).count()
            return one + (two - one) * (config.controlnet_depth - 1) + base
        return self.graph(name, pixels).count()

    def peak(self, name: str, pixels: int, width: int, *, fused_attention: bool = True) -> int:
        """Live memory of activations in bytes; it is the same for any number of blocks, from two on."""
        blocks = {"denoiser_control": {"depth": 3}, "text_encoder": {"layers": 2}}.get(name, {})
        return self.graph(name, pixels, **blocks).peak(width, fused_attention=fused_attention)


def sizes_at(width: int, height: int, tokens: int, batch: int = 1) -> dict[str, int]:
    """Values of a bundle's symbols for a picture; prompts are padded to a multiple of eight tokens."""
    rows, columns = height // 8, width // 8
    return {"B": batch, "L": -(-tokens // 8) * 8, "H": rows, "W": columns, "N": rows * columns // 4}
