"""Engines on a GPU against diffusers on the same GPU: every module and whole pictures, in one command.

    pixart compile --model MODEL --backend tensorrt_rtx --profile 512,1024 --max-batch 4 --out bundle
    python -m benchmarks.gpu --bundle bundle

Both sides have the same weights, the same number of steps and no guidance; the peer is PixArtAlphaPipeline with
LCMScheduler in float16. Times are medians, with the copies to and from the device. A prompt's text is encoded before
the clock starts, on both sides, as it is cached where people draw; it has a line of its own. With `--backend openvino`
the same code runs on a CPU (the peer then in float32), to see that it works.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine, peer
from engine.backends import Backend, BackendOptions, CompileError, Module, Precision, Source, create
from engine.bundle import Bundle
from engine.manifest import Manifest, ModuleName, ModuleSpec, Size, parse_dimension
from engine.pipeline import Pipeline
from engine.profiles import parse_profile
from engine.request import GenerateRequest, validate

PROMPT = "a red apple on a blue background"
TOKENS = 32  # of a prompt that is encoded
VAE_SCALE = 8


@dataclass(frozen=True)
class Row:
    """One line of the table: milliseconds of ours and, where there is such a thing, of the peer's."""

    what: str
    size: str
    batch: int
    ours: float
    theirs: float | None = None


class Kept:
    """A backend that remembers its modules, so that each engine is loaded once."""

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.precision = backend.precision
        self._backend = backend
        self.modules: dict[str, Module] = {}

    def compile(self, source: Source) -> Module:
        """See `engine.backends.base.Backend.compile`."""
        module = self.modules[source.graph.stem] = self._backend.compile(source)
        return module


def milliseconds(work: Callable[[], object], runs: int) -> float:
    """Median of `runs`, after three that warm up: the first compiles kernels, the second records the CUDA graph."""
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def random_inputs(spec: ModuleSpec, manifest: Manifest, size: Size, batch: int) -> dict[str, np.ndarray]:
    """Inputs of the right shapes; what is in them does not matter for the time."""
    height, width = size.height // VAE_SCALE, size.width // VAE_SCALE
    limit = manifest.dimensions["L"].max
    symbols = {
        "B": batch,
        # A prompt is encoded at its own length; to the denoisers it comes padded to the limit.
        "L": min(TOKENS, limit) if any(tensor.name == "ids" for tensor in spec.inputs) else limit,
        "H": height,
        "W": width,
        "N": height * width // manifest.positions.patch_size**2,
    }
    generator = np.random.default_rng(0)
    inputs = {}
    for tensor in spec.inputs:
        shape = [_extent(dimension, symbols) for dimension in tensor.shape]
        values = generator.standard_normal(shape) if tensor.dtype == "float32" else np.ones(shape)
        inputs[tensor.name] = values.astype(tensor.dtype)
    if "position" in inputs:
        inputs["position"].setflags(write=False)  # as the pipeline has it
    return inputs


def _extent(dimension: int | str, symbols: Mapping[str, int]) -> int:
    if isinstance(dimension, int):
        return dimension
    factor, symbol = parse_dimension(dimension)
    return factor * symbols[symbol]


def modules(bundle: Bundle, kept: Kept, size: Size, batch: int, runs: int) -> list[Row]:
    """A line for each module."""
    rows = []
    for name, spec in bundle.manifest.modules.items():
        inputs, module = random_inputs(spec, bundle.manifest, size, batch), kept.modules[name]
        took = milliseconds(lambda module=module, inputs=inputs: module.run(inputs), runs)  # type: ignore[misc]
        rows.append(Row(name, f"{size.width}x{size.height}", batch, took))
    return rows


def picture(pipeline: Pipeline, size: Size, batch: int, steps: int) -> Callable[[], object]:
    """Draws `batch` pictures from one known caption."""
    request = GenerateRequest(PROMPT, steps=steps, width=size.width, height=size.height)
    job = validate(request, pipeline.manifest)
    text = pipeline.encode_text(PROMPT)

    def draw() -> np.ndarray:
        samples = [pipeline.start(job, text, None) for _ in range(batch)]
        while not samples[0].finished:
            pipeline.denoise(samples)
        return pipeline.decode(samples)

    return draw


@torch.inference_mode()
def peer_picture(other: peer.Peer, size: Size, batch: int, steps: int) -> Callable[[], object]:
    """Draws the same with diffusers."""
    pipeline = other.pipeline
    caption, mask, *_ = pipeline.encode_prompt(
        PROMPT, do_classifier_free_guidance=False, max_sequence_length=other.config.max_tokens
    )

    @torch.inference_mode()
    def draw() -> object:
        return pipeline(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=caption.repeat(batch, 1, 1),
            prompt_attention_mask=mask.repeat(batch, 1),
            num_inference_steps=steps,
            guidance_scale=1.0,
            height=size.height,
            width=size.width,
            use_resolution_binning=False,
            output_type="np",
        ).images

    return draw


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| what | size | batch | ours, ms | diffusers, ms | ratio |", "|---|---|---|---|---|---|"]
    for row in rows:
        theirs = "" if row.theirs is None else f"{row.theirs:.2f}"
        ratio = "" if row.theirs is None else f"{row.theirs / row.ours:.2f}"
        lines.append(f"| {row.what} | {row.size} | {row.batch} | {row.ours:.2f} | {theirs} | {ratio} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle with compiled engines")
    parser.add_argument("--backend", default="tensorrt_rtx", help="tensorrt_rtx (default), tensorrt, …")
    parser.add_argument("--precision", default=None, choices=("f32", "bf16", "f16"), help="f16; f32 without a GPU")
    parser.add_argument("--sizes", default="", help="e.g. 512,1024 (all sizes of the bundle)")
    parser.add_argument("--batches", default="1,2,4")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    return parser.parse_args()


def main() -> None:
    """The command."""
    options = _arguments()
    on_gpu = options.backend.startswith("tensorrt")
    bundle = Bundle.load(options.bundle)
    precision: Precision = options.precision or ("f16" if on_gpu else "f32")
    try:
        kept = Kept(create(options.backend, BackendOptions(precision=precision, cache=options.bundle / "engines")))
        pipeline = Pipeline(bundle, kept)
    except (CompileError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    wanted = [parse_profile(text) for text in options.sizes.split(",") if text]
    sizes = [size for size in bundle.manifest.images.allowed if not wanted or (size.width, size.height) in wanted]
    batches = [batch for batch in map(int, options.batches.split(",")) if batch <= pipeline.max_batch]
    where = torch.device("cuda" if on_gpu else "cpu")
    other = peer.load(options.bundle, torch.float16 if on_gpu else torch.float32)
    other.pipeline.to(where)
    other.pipeline.set_progress_bar_config(disable=True)

    rows: list[Row] = []
    text: ModuleName = "text_encoder"
    for size in sizes:
        for batch in batches:
            rows += [row for row in modules(bundle, kept, size, batch, options.runs) if row.what != text or not rows]
            ours = milliseconds(picture(pipeline, size, batch, options.steps), options.runs)
            theirs = milliseconds(peer_picture(other, size, batch, options.steps), options.runs)
            label = f"picture, {options.steps} steps"
            rows.append(Row(label, f"{size.width}x{size.height}", batch, ours, theirs))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    device = torch.cuda.get_device_name() if on_gpu else "the processor"
    about = machine.describe("diffusers", "torch") | {"device": device, "backend": options.backend}
    print("\n" + "\n".join(f"{name}: {value}" for name, value in about.items()) + "\n\n" + table(rows))
    if options.json:
        content = {"machine": about, "rows": [vars(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
