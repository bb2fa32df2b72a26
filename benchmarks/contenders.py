"""What `benchmarks.engine` times: calls of the engine, of diffusers, and of a plain product, at random inputs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel

from benchmarks.fullsize import sizes_at
from engine.backends import BackendOptions, Precision, Source, create
from engine.manifest import parse_dimension
from models.config import PixArtConfig
from models.export.quantize import quantize_graph

TOKENS = 120
MATMUL = 2048  # side of the square product that stands for the peak
CALIBRATION = 2  # random inputs; enough for times, which do not depend on the scales found

Contender = Callable[[], object]


def inputs_of(source: Source, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of the module at `sizes`."""
    generator = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for tensor in source.spec.inputs:
        parsed = [(size, "") if isinstance(size, int) else parse_dimension(size) for size in tensor.shape]
        shape = [factor * sizes[symbol] if symbol else factor for factor, symbol in parsed]
        if tensor.dtype == "bool":
            found[tensor.name] = np.ones(shape, np.bool_)
        elif tensor.name == "timestep":
            found[tensor.name] = np.full(shape, 499, np.float32)
        else:
            found[tensor.name] = generator.standard_normal(shape, dtype=np.float32)
    return found


def engine_contenders(sources: dict[str, Source], pixels: int, precision: Precision) -> dict[str, Contender]:
    """OpenVINO's: step, guided step, control step and decoding, as far as their modules are in `sources`."""
    backend = create("openvino", BackendOptions(precision=precision))
    calls = {
        "denoiser": (("step", 1), ("guided step", 2)),
        "denoiser_control": (("control step", 1),),
        "vae_decoder": (("decode", 1),),
    }
    found: dict[str, Contender] = {}
    for name, source in sources.items():
        module = backend.compile(source)
        for what, batch in calls[name]:
            inputs = inputs_of(source, sizes_at(pixels, pixels, TOKENS, batch))
            found[f"engine, OpenVINO {precision}: {what}"] = partial(module.run, inputs)
    return found


def int8_contenders(plain: Source, pixels: int, precision: Precision, scratch: Path) -> dict[str, Contender]:
    """The denoiser's step with every product in 8 bits; what is left is computed in `precision`."""
    inputs = [inputs_of(plain, sizes_at(pixels, pixels, TOKENS), seed) for seed in range(CALIBRATION)]
    graph = quantize_graph(plain.graph, inputs, scratch)
    module = create("openvino", BackendOptions(precision=precision)).compile(
        replace(plain, graph=graph, digest=f"{plain.digest} in 8 bits")
    )
    return {f"engine, OpenVINO int8 and {precision}: step": partial(module.run, inputs[0])}


def peer_contenders(config: PixArtConfig, pixels: int, dtype: torch.dtype, compiled: bool) -> dict[str, Contender]:
    """diffusers' transformer of the same size, and its autoencoder's decoder."""
    dit = config.dit
    transformer: Any = PixArtTransformer2DModel(
        num_attention_heads=dit.heads,
        attention_head_dim=dit.width // dit.heads,
        in_channels=dit.in_channels,
        out_channels=2 * dit.in_channels,
        num_layers=dit.depth,
        cross_attention_dim=dit.width,
        sample_size=dit.sample_size,
        caption_channels=dit.caption_channels,
        use_additional_conditions=False,
    )
    transformer = transformer.eval().to(dtype)
    decoder: Any = AutoencoderKL(**config.vae).eval().to(dtype)
    call = torch.compile(transformer) if compiled else transformer
    latents = torch.randn(1, dit.in_channels, pixels // 8, pixels // 8, dtype=dtype)
    caption = torch.randn(1, TOKENS, dit.caption_channels, dtype=dtype)
    mask = torch.ones(1, TOKENS)
    conditions = {"resolution": None, "aspect_ratio": None}
    label = f"diffusers, {str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}"

    @torch.inference_mode()
    def step() -> object:
        return call(
            latents,
            encoder_hidden_states=caption,
            encoder_attention_mask=mask,
            timestep=torch.tensor([499]),
            added_cond_kwargs=conditions,
        )

    @torch.inference_mode()
    def decode() -> object:
        return decoder.decode(latents)

    return {f"{label}: step": step, f"{label}: decode": decode}


def peak_contender(dtype: torch.dtype) -> dict[str, Contender]:
    """The square product whose rate is called the peak."""
    left, right = torch.rand(MATMUL, MATMUL).to(dtype), torch.rand(MATMUL, MATMUL).to(dtype)
    return {f"matmul, {str(dtype).removeprefix('torch.')}": lambda: left @ right}
