"""Engine time of one picture by stage, beside diffusers' pipeline with the same weights.

    python -m benchmarks.generate [--bundle models/zoo/emoji] [--steps 4] [--rounds 40] [--json out.json]

Every round times each contender once, in an order that is shuffled anew, so that whatever else the machine does falls
on all alike. Both make one picture a call, from prompt to uint8 pixels, without guidance, with all cores. That they run
the same model is checked first: from the same noise, one step must give the same picture.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine, peer
from engine import noise
from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.generate import Generator
from engine.request import GenerateRequest

PROMPTS = (
    "a red apple on a blue background",
    "an owl on a white background",
    "a slice of cake on a green background",
    "an elephant on a yellow background",
)
STAGES = ("text", "denoise", "decode", "all")
WARM_UP = 3

Contender = Callable[[str, int], dict[str, float]]


def contenders(bundle: Bundle, steps: int) -> dict[str, Contender]:
    """Name to a call that makes one picture and returns its stage times in seconds.

    bfloat16 is left out where the processor has no arithmetic in it.
    """
    found: dict[str, Contender] = {}
    native = machine.has_bf16()
    for precision in ("f32", "bf16") if native else ("f32",):
        generator = Generator(bundle, create("openvino", BackendOptions(precision=precision)))  # type: ignore[arg-type]
        found[f"engine, OpenVINO {precision}"] = _engine(generator, steps)
    for dtype in (torch.float32, torch.bfloat16) if native else (torch.float32,):
        pipeline = peer.load(bundle.folder, dtype)
        if dtype is torch.float32:
            check_same(bundle, pipeline)
        found[f"diffusers, torch {str(dtype).removeprefix('torch.')}"] = _peer(pipeline, steps)
    return found


def _engine(generator: Generator, steps: int) -> Contender:
    def run(prompt: str, seed: int) -> dict[str, float]:
        return generator.generate(GenerateRequest(prompt, seed=seed, steps=steps)).timings

    return run


def _peer(pipeline: peer.Peer, steps: int) -> Contender:
    def run(prompt: str, seed: int) -> dict[str, float]:
        return pipeline.generate(prompt, seed, steps)[1]

    return run


def check_same(bundle: Bundle, pipeline: peer.Peer) -> None:
    """Raise RuntimeError unless both make the same picture in one step from the same noise, within rounding."""
    generator = Generator(bundle, create("openvino", BackendOptions()))
    size = bundle.manifest.images.default
    start = noise.normal(5, 0, (1, 4, size.height // 8, size.width // 8))
    for prompt in PROMPTS:
        ours = generator.generate(GenerateRequest(prompt, seed=5, steps=1)).images[0].astype(int)
        theirs = pipeline.generate(prompt, 5, 1, start)[0].astype(int)
        if (difference := int(np.abs(ours - theirs).max())) > 2:
            raise RuntimeError(f"{prompt!r}: pictures differ by {difference} of 255, so this is not the same model")


def measure(runs: dict[str, Contender], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by contender and stage, one value a round."""
    times: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in STAGES} for name in runs}
    order = list(runs)
    for index in range(WARM_UP + rounds):
        random.shuffle(order)
        for name in order:
            stages = runs[name](PROMPTS[index % len(PROMPTS)], index)
            if index >= WARM_UP:
                for stage in STAGES[:-1]:
                    times[name][stage].append(1000 * stages[stage])
                times[name]["all"].append(1000 * sum(stages.values()))
    return times


def table(times: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: median and 95th percentile in milliseconds."""
    lines = ["| median (p95), ms | " + " | ".join(STAGES) + " |", "|---" * (len(STAGES) + 1) + "|"]
    for name, stages in times.items():
        cells = (f"{statistics.median(stages[stage]):.1f} ({np.percentile(stages[stage], 95):.1f})" for stage in STAGES)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Time one picture by stage, beside diffusers' pipeline.")
    parser.add_argument("--bundle", type=Path, default=Path("models/zoo/emoji"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write every measured value here")
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    about = machine.describe("openvino", "torch", "diffusers")
    times = measure(contenders(bundle, options.steps), options.rounds)
    size = bundle.manifest.images.default
    print(f"{bundle.manifest.name}, {options.steps} steps, {size.width}x{size.height}, {options.rounds} rounds")
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(table(times))
    if options.json:
        result = {"machine": about, "steps": options.steps, "milliseconds": times}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
