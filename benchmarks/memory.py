"""What a picture needs in memory: weights by module and the most that activations take, counted from the graphs.

    python -m benchmarks.memory [--pixels 1024] [--limit 8] [--graphs FOLDER] [--json out.json]

Modules run one after another, so the peak is what is resident plus the largest of their activations. Numbers take two
bytes; with the 8-bit text encoder, the matrices of its products take one. What a runtime adds (its context, its
workspace, its allocator's waste) is not in here. Decoding in tiles means squares of 512 pixels. The last column says
whether this engine keeps the model so.
"""

import argparse
import json
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.fullsize import FullSize

FP16 = 2
GB = 10**9
TILE = 512  # pixels
CPU_ALONE = "on a CPU alone"  # `pixart compile` refuses int8 for TensorRT
MODULES = ("text_encoder", "denoiser", "denoiser_control", "vae_decoder", "vae_encoder", "edge_detector")


@dataclass(frozen=True)
class Need:
    """Bytes of one module: weights in fp16, weights with 8-bit matrices, live activations with and without scores."""

    module: str
    weights: int
    weights_8bit: int
    activations: int
    activations_unfused: int


@dataclass(frozen=True)
class Plan:
    """A way to keep the model: bytes that are resident, the most that is ever taken, and if this engine does so."""

    name: str
    resident: int
    peak: int
    ours: str


def needs(model: FullSize, pixels: int) -> dict[str, Need]:
    """Each module's, at pictures of `pixels`²; `vae_decoder` in one piece."""
    found = {}
    for name in MODULES:
        count = model.count(name, pixels)
        found[name] = Need(
            name,
            FP16 * count.weights,
            FP16 * count.weights - count.matrices,
            model.peak(name, pixels, FP16),
            model.peak(name, pixels, FP16, fused_attention=False),
        )
    return found


def plans(needed: dict[str, Need], tile: int) -> list[Plan]:
    """Ways from the simplest to the most sparing; `tile` is the activations of the decoder for one tile.

    A bundle stores the base once, but each module that is loaded has all of its weights: with control there are two
    bases, one in `denoiser` and one in `denoiser_control`.
    """
    text, decoder = needed["text_encoder"], needed["vae_decoder"]
    found = []
    for control in (False, True):
        others = [needed["denoiser"]]
        others += [needed[name] for name in ("denoiser_control", "vae_encoder", "edge_detector")] if control else []
        model = "with control" if control else "text to image"
        rest = sum(need.weights for need in [*others, decoder])
        tiled = max(tile, *(need.activations for need in others))
        whole = max(tiled, decoder.activations)
        for bits, weights, resident_here in (("fp16", text.weights, "yes"), ("8-bit", text.weights_8bit, CPU_ALONE)):
            resident = weights + rest
            name = f"{model}, {bits} text encoder"
            # The encoder goes before the rest comes, so the two are never in memory together.
            freed = max(weights + text.activations, rest + whole)
            found += [
                Plan(f"{name}, resident", resident, resident + max(text.activations, whole), resident_here),
                Plan(f"{name}, resident, decoded in tiles", resident, resident + max(text.activations, tiled), "no"),
                Plan(f"{name}, freed after encoding", max(weights, rest), freed, "no"),
            ]
    return found


def need_table(found: Iterable[Need]) -> str:
    """Markdown, in GB of 10⁹ bytes."""
    lines = [
        "| module | weights, fp16 | weights, 8-bit matrices | activations | activations, attention not fused |",
        "|---|---:|---:|---:|---:|",
    ]
    for need in found:
        values = (need.weights, need.weights_8bit, need.activations, need.activations_unfused)
        lines.append(f"| {need.module} | " + " | ".join(f"{value / GB:.2f}" for value in values) + " |")
    return "\n".join(lines)


def plan_table(found: Iterable[Plan], limit: int) -> str:
    """Markdown: what is resident, the peak, and whether it is within `limit` bytes."""
    lines = [f"| GB | resident weights | peak | within {limit / GB:g} GB | this engine |", "|---|---:|---:|---|---|"]
    for plan in found:
        verdict = "yes" if plan.peak <= limit else "no"
        lines.append(f"| {plan.name} | {plan.resident / GB:.2f} | {plan.peak / GB:.2f} | {verdict} | {plan.ours} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Memory of PixArt-δ XL/2 by module, and in ways to keep it.")
    parser.add_argument("--pixels", type=int, default=1024, help="side of the picture (default 1024)")
    parser.add_argument("--limit", type=float, default=8.0, help="memory to hold it in, GB of 10⁹ bytes (default 8)")
    parser.add_argument("--graphs", type=Path, help="keep the full-size graphs here, and use those that are here")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args(arguments)
    logging.getLogger("torch").setLevel(logging.ERROR)
    with ExitStack() as stack:
        model = FullSize(options.graphs or Path(stack.enter_context(TemporaryDirectory())))
        needed = needs(model, options.pixels)
        tile = model.peak("vae_decoder", min(TILE, options.pixels), FP16)
    ways = plans(needed, tile)
    print(need_table(needed.values()), plan_table(ways, round(options.limit * GB)), sep="\n\n")
    if options.json:
        result = {"modules": [asdict(need) for need in needed.values()], "plans": [asdict(plan) for plan in ways]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
