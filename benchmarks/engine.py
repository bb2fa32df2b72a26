"""The engine beside diffusers on this CPU, at PixArt-XL/2's width with random weights: ratios within one run.

    python -m benchmarks.engine [--size 512] [--depth 28] [--int8] [--rounds 5] [--json out.json]

A step of the denoiser, a step under control, a guided step (a batch of two) and a decoding are each timed in every
round, in an order that is shuffled anew; medians are printed. Pictures are composed of them: S steps and one decoding,
with the prompt's encoding known. One precision follows the other, each beside diffusers in float32, so that 24 GiB of
memory hold all that is compared. `--depth` shortens the transformer (and the control branch in proportion) for
machines on which 28 blocks would take too long; ratios of steps hold, the decoder's share does not. `--int8` adds a
denoiser with 8-bit products, whose making takes minutes and several times the denoiser's memory. bfloat16 is timed
only where the processor computes in it, since elsewhere it is emulated.
"""

import argparse
import gc
import json
import random
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import machine
from benchmarks.contenders import (
    MATMUL,
    TOKENS,
    Contender,
    engine_contenders,
    int8_contenders,
    peak_contender,
    peer_contenders,
)
from benchmarks.counting import ConcreteGraph
from benchmarks.fullsize import CONTROL_DEPTH, full_config, meta_parts, random_sources, shorten, sizes_at
from engine.backends import BackendOptions, Precision, Source, create
from engine.bundle import Bundle
from engine.pipeline import Pipeline
from engine.request import GenerateRequest, validate
from engine.sources import BATCHES
from models.config import PixArtConfig

FULL_DEPTH = 28
STEPS = 4
GUIDED = (14, 20)  # steps of PixArt-α with guidance to compare with
DTYPES: dict[Precision, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}


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


def start(bundle: Bundle, cache: Path) -> Pipeline:
    """Load what a worker of the server loads."""
    return Pipeline(bundle, create("openvino", BackendOptions(precision="auto", cache=cache)), BATCHES)


def demo(folder: Path, rounds: int) -> dict[str, float]:
    """Median seconds of the bundle's default picture, and of a start with all that it loads in the cache."""
    bundle = Bundle.load(folder)
    job = validate(GenerateRequest("a red apple on a blue background", steps=STEPS), bundle.manifest)
    with TemporaryDirectory() as cache:
        pipeline = start(bundle, Path(cache))

        def picture() -> object:
            sample = pipeline.start(job, pipeline.encode_text(job.prompt), None)
            while not sample.finished:
                pipeline.denoise([sample])
            return pipeline.decode([sample])

        return measure({"demo picture": picture, "demo warm start": partial(start, bundle, Path(cache))}, rounds)


def compare(
    config: PixArtConfig, sources: dict[str, Source], pixels: int, precision: Precision, rounds: int, int8: Path | None
) -> dict[str, float]:
    """Median seconds of one precision's calls, beside diffusers in float32; `int8` is a folder to quantise in."""
    contenders = engine_contenders(sources, pixels, precision) | peak_contender(DTYPES[precision])
    contenders |= peer_contenders(config, pixels, torch.float32, compiled=False)
    if precision == "bf16":
        contenders |= peer_contenders(config, pixels, torch.bfloat16, compiled=True)
    if int8 is not None:
        contenders |= int8_contenders(sources["denoiser"], pixels, precision, int8)
    times = measure(contenders, rounds)
    contenders.clear()
    torch.compiler.reset()
    gc.collect()
    return times


def derive(precision: Precision, times: dict[str, float], flops: int) -> list[tuple[str, float, str]]:
    """What one precision's times say: name, value, unit. Only rows whose times are there."""
    label, dtype = f"engine, OpenVINO {precision}", str(DTYPES[precision]).removeprefix("torch.")
    step, decode, control, guided = (
        times[f"{label}: {what}"] for what in ("step", "decode", "control step", "guided step")
    )
    peer, compiled = times["diffusers, float32: step"], times.get("diffusers, bfloat16, compiled: step")
    picture, theirs = STEPS * step + decode, STEPS * peer + times["diffusers, float32: decode"]
    rows = [(f"{label}: step, faster than diffusers float32", peer / step, "×")]
    if compiled is not None:
        rows.append((f"{label}: step, faster than diffusers bfloat16 compiled", compiled / step, "×"))
    eight = f"engine, OpenVINO int8 and {precision}: step"
    if eight in times:
        rows.append((f"{eight}, faster than diffusers float32", peer / times[eight], "×"))
        rows.append((f"{eight}, faster than {precision}", step / times[eight], "×"))
    peak = 2 * MATMUL**3 / times[f"matmul, {dtype}"]
    rows.append((f"{label}: step, share of the {dtype} product's rate", 100 * flops / step / peak, "%"))
    rows.append((f"{label}: {STEPS}-step picture", picture, "s"))
    rows.append((f"{label}: {STEPS}-step picture, faster than diffusers float32", theirs / picture, "×"))
    for steps in GUIDED:
        alpha = steps * guided + decode
        rows.append((f"{label}: {STEPS} steps, faster than {steps} guided steps", alpha / picture, "×"))
    rows.append((f"{label}: cost that control adds to a step", 100 * (control / step - 1), "%"))
    rows.append((f"{label}: decoder's share of the picture", 100 * decode / picture, "%"))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The engine beside diffusers on this CPU, at full width.")
    parser.add_argument("--size", type=int, choices=(256, 512), default=512, help="side of the picture")
    parser.add_argument("--depth", type=int, default=FULL_DEPTH, help="transformer blocks, 2 to 28")
    parser.add_argument("--int8", action="store_true", help="add a denoiser with 8-bit products")
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
    precisions: list[Precision] = ["f32", "bf16"] if machine.has_bf16() else ["f32"]
    if "bf16" not in precisions:
        print("bfloat16 rows are left out: this processor has no arithmetic in it")
    times: dict[str, dict[str, float]] = {}
    rows: list[tuple[str, float, str]] = []
    with TemporaryDirectory() as folder:
        sources = random_sources(meta_parts(config), Path(folder), ["denoiser", "denoiser_control", "vae_decoder"])
        flops = ConcreteGraph(sources["denoiser"].graph, sizes_at(options.size, options.size, TOKENS)).count().flops
        for precision in precisions:
            int8 = Path(folder) if options.int8 and precision == precisions[-1] else None
            times[precision] = compare(config, sources, options.size, precision, options.rounds, int8)
            rows += derive(precision, times[precision], flops)
    times["demo"] = demo(options.bundle, options.rounds)
    rows += [(name, seconds, "s") for name, seconds in times["demo"].items()]
    print("\n| beside | call | median, s |\n|---|---|---:|")
    for group, values in times.items():
        print("\n".join(f"| {group} | {name} | {seconds:.4f} |" for name, seconds in values.items()))
    print("\n| figure | value |\n|---|---:|")
    print("\n".join(f"| {name} | {value:.2f} {unit} |" for name, value, unit in rows))
    if options.json:
        result = {"machine": about, "options": {"depth": options.depth, "control": control, "size": options.size}}
        figures = [{"name": name, "value": value, "unit": unit} for name, value, unit in rows]
        options.json.write_text(json.dumps(result | {"seconds": times, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
