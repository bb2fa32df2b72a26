"""The engine beside diffusers on this CPU, at PixArt-XL/2's width with random weights: ratios within one run.

    python -m benchmarks.engine [--size 512] [--depth 28] [--rounds 5] [--bundle models/zoo/emoji] [--json out.json]

A step of the denoiser, a step under control, a guided step (a batch of two) and a decoding are each timed in every
round, in an order that is shuffled anew; medians are printed. Pictures are composed of them: S steps and one decoding,
with the prompt's encoding known. `--depth` shortens the transformer (and the control branch in proportion) for
machines on which 28 blocks would take too long; ratios of steps hold, the decoder's share does not. bfloat16 is timed
only where the processor computes in it, since elsewhere it is emulated.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel

from benchmarks import machine
from benchmarks.counting import ConcreteGraph
from benchmarks.fullsize import CONTROL_DEPTH, full_config, meta_parts, random_sources, shorten, sizes_at
from engine.backends import BackendOptions, Source, create
from engine.bundle import Bundle
from engine.manifest import parse_dimension
from engine.pipeline import Pipeline
from engine.request import GenerateRequest, validate
from models.config import PixArtConfig

FULL_DEPTH = 28
TOKENS = 120
MATMUL = 2048  # side of the square product that stands for the peak
STEPS = 4
GUIDED = (14, 20)  # steps of PixArt-α with guidance to compare with

Contender = Callable[[], object]


def inputs_of(source: Source, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Random inputs of the module at `sizes`."""
    generator = np.random.default_rng(0)
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


def engine_contenders(sources: dict[str, Source], pixels: int, precision: str) -> dict[str, Contender]:
    """OpenVINO's: step, guided step, control step and decoding."""
    backend = create("openvino", BackendOptions(precision=precision))  # type: ignore[arg-type]
    label = f"engine, OpenVINO {precision}"
    found: dict[str, Contender] = {}
    for name, source in sources.items():
        module = backend.compile(source)
        for batch in (1, 2) if name == "denoiser" else (1,):
            inputs = inputs_of(source, sizes_at(pixels, pixels, TOKENS, batch))
            what = {"denoiser": "step" if batch == 1 else "guided step", "denoiser_control": "control step"}
            found[f"{label}: {what.get(name, 'decode')}"] = lambda module=module, inputs=inputs: module.run(inputs)  # type: ignore[misc]
    return found


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


def measure(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Median seconds of each, after one call to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for index in range(rounds + 1):
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            contenders[name]()
            if index:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def demo(folder: Path, rounds: int) -> dict[str, float]:
    """Median seconds of the bundle's default picture, and of a start with every module in the cache."""
    bundle = Bundle.load(folder)
    job = validate(GenerateRequest("a red apple on a blue background", steps=STEPS), bundle.manifest)
    with TemporaryDirectory() as cache:

        def start() -> Pipeline:
            return Pipeline(bundle, create("openvino", BackendOptions(precision="auto", cache=Path(cache))))

        pipeline = start()

        def picture() -> object:
            sample = pipeline.start(job, pipeline.encode_text(job.prompt), None)
            while not sample.finished:
                pipeline.denoise([sample])
            return pipeline.decode([sample])

        return measure({"demo picture": picture, "demo warm start": start}, rounds)


def derive(times: dict[str, float], flops: int) -> list[tuple[str, float, str]]:
    """What the times say: name, value, unit. Only rows whose times are there."""
    rows: list[tuple[str, float, str]] = []
    peer = times["diffusers, float32: step"]
    compiled = times.get("diffusers, bfloat16, compiled: step")
    for precision, dtype in (("f32", "float32"), ("bf16", "bfloat16")):
        label = f"engine, OpenVINO {precision}"
        if f"{label}: step" not in times:
            continue
        step, decode, control, guided = (
            times[f"{label}: {what}"] for what in ("step", "decode", "control step", "guided step")
        )
        picture = STEPS * step + decode
        rows.append((f"{label}: step, faster than diffusers float32", peer / step, "×"))
        if compiled is not None:
            rows.append((f"{label}: step, faster than diffusers bfloat16 compiled", compiled / step, "×"))
        peak = 2 * MATMUL**3 / times[f"matmul, {dtype}"]
        rows.append((f"{label}: step, share of the {dtype} product's rate", 100 * flops / step / peak, "%"))
        rows.append((f"{label}: {STEPS}-step picture", picture, "s"))
        theirs = STEPS * peer + times["diffusers, float32: decode"]
        rows.append((f"{label}: {STEPS}-step picture, faster than diffusers float32", theirs / picture, "×"))
        for steps in GUIDED:
            alpha = steps * guided + decode
            rows.append((f"{label}: {STEPS} steps, faster than {steps} guided steps", alpha / picture, "×"))
        rows.append((f"{label}: cost that control adds to a step", 100 * (control / step - 1), "%"))
        rows.append((f"{label}: decoder's share of the picture", 100 * decode / picture, "%"))
    rows += [(name, times[name], "s") for name in ("demo picture", "demo warm start") if name in times]
    return rows


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The engine beside diffusers on this CPU, at full width.")
    parser.add_argument("--size", type=int, choices=(256, 512), default=512, help="side of the picture")
    parser.add_argument("--depth", type=int, default=FULL_DEPTH, help="transformer blocks, 2 to 28")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", type=Path, default=Path("models/zoo/emoji"), help="the demo model")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args(arguments)
    if not 2 <= options.depth <= FULL_DEPTH:
        parser.error(f"--depth must be from 2 to {FULL_DEPTH}")
    control = max(1, round(options.depth * CONTROL_DEPTH / FULL_DEPTH))
    config = shorten(full_config(512), options.depth, control, 1)
    about = machine.describe("openvino", "torch", "diffusers")
    print(f"{options.depth} blocks, {control} of control, {options.size}x{options.size}, {options.rounds} rounds")
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    with TemporaryDirectory() as folder:
        sources = random_sources(meta_parts(config), Path(folder), ["denoiser", "denoiser_control", "vae_decoder"])
        flops = ConcreteGraph(sources["denoiser"].graph, sizes_at(options.size, options.size, TOKENS)).count().flops
        contenders = engine_contenders(sources, options.size, "f32") | peak_contender(torch.float32)
        contenders |= peer_contenders(config, options.size, torch.float32, compiled=False)
        if machine.has_bf16():
            contenders |= engine_contenders(sources, options.size, "bf16") | peak_contender(torch.bfloat16)
            contenders |= peer_contenders(config, options.size, torch.bfloat16, compiled=True)
        else:
            print("bfloat16 rows are left out: this processor has no arithmetic in it")
        times = measure(contenders, options.rounds)
    times |= demo(options.bundle, options.rounds)
    rows = derive(times, flops)
    print("\n| call | median, s |\n|---|---:|")
    print("\n".join(f"| {name} | {seconds:.4f} |" for name, seconds in times.items()))
    print("\n| figure | value |\n|---|---:|")
    print("\n".join(f"| {name} | {value:.2f} {unit} |" for name, value, unit in rows))
    if options.json:
        result = {"machine": about, "options": {"depth": options.depth, "control": control, "size": options.size}}
        figures = [{"name": name, "value": value, "unit": unit} for name, value, unit in rows]
        options.json.write_text(json.dumps(result | {"seconds": times, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
