"""A bundle's 8-bit variant: `python -m models.export.quantize --bundle FOLDER --out FOLDER`; see docs/quantization.md.

The denoisers are quantised after training by NNCF, weights and activations, calibrated on the bundle's own latents at
every step of the prompts' pictures. Layers whose rounding costs most, as measured on pictures that were not
calibrated with, stay in float32. The text encoder's matrices are stored in 8 bits.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
from onnx import ModelProto, NodeProto

from models.export.calibration import Calibration, GraphPipeline, Inputs, session
from models.export.source import read_bundle, sha256_of
from models.export.weights8 import compress_weights

log = logging.getLogger(__name__)

STEPS = 4
MAX_FLOAT_SHARE = 0.25  # of a graph's products; with more of them in float32 the variant is not worth having
DENOISERS = ("denoiser", "denoiser_control")
PROMPTS = (
    "a red apple on a blue background",
    "an owl on a white background",
    "a slice of cake on a green background",
    "an elephant on a yellow background",
    "a small cactus in a clay pot",
    "a steam train in the snow, oil painting",
    "a city at night, seen from above",
    "a portrait of an old sailor",
)


@dataclass(frozen=True)
class Report:
    """What became of a denoiser: its products, those kept in float32, and x0's relative error on unseen pictures."""

    module: str
    products: int
    kept: tuple[str, ...]
    error_all: float
    error: float


def quantize_bundle(bundle: Path, out: Path, prompts: Sequence[str], max_error: float) -> list[Report]:
    """Write the variant of `bundle` to the folder `out`, which must be new or empty.

    It grows in the folder `OUT.part`, so what an interruption leaves behind is in nobody's way.

    Raises:
        ValueError: `bundle` is not one or is damaged, `out` has files or is a mount point, or the prompts are too few.
        OSError: a file cannot be read or written.
    """
    if out.is_mount():  # nothing can be renamed to it
        raise ValueError(f"{out} is a mount point; name a folder in it")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    if len(prompts) < 2:
        raise ValueError("at least two prompts are needed: one to calibrate with and one to judge by")
    manifest, config, size = read_bundle(bundle)
    final = out.resolve()
    part = final.with_name(f"{final.name}.part")
    if part.exists():
        shutil.rmtree(part)
    for name in manifest["files"]:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, part / name)
    pipeline = GraphPipeline(bundle, config, size)
    reports = []
    for name in DENOISERS:
        if name in manifest["modules"]:
            recorded = pipeline.record(name, prompts, STEPS)
            reports.append(_quantize_denoiser(bundle / f"{name}.onnx", part, recorded, max_error))
            manifest["modules"][name]["weights"] = [f"weights/{name}.int8.bin"]
    weights = "weights/text_encoder.int8.bin"
    compress_weights(bundle / "text_encoder.onnx", part / "text_encoder.onnx", weights)
    manifest["modules"]["text_encoder"]["weights"].append(weights)
    _finish(manifest, part)
    os.replace(part, final)
    return reports


def quantize_graph(graph: Path, calibrating: Sequence[Inputs], scratch: Path) -> Path:
    """Write `graph` with all products in 8 bits to the folder `scratch`, whatever that costs; returns the new file."""
    return _write(_quantize(_fold(graph, scratch), calibrating, ()), scratch, f"{graph.stem}-8-bits")


def _quantize_denoiser(graph: Path, out: Path, recorded: Calibration, max_error: float) -> Report:
    """Quantise, measure, and keep more of the sensitive products in float32 until x0's error is small enough."""
    calibrating, judging = recorded.split()
    with TemporaryDirectory() as scratch:
        plain = _fold(graph, Path(scratch))
        expected = _predict(plain, judging)
        found = _write(_quantize(plain, calibrating, ()), Path(scratch), "all")
        error_all = error = relative_error(expected, _predict(found, judging))
        log.info("%s: error of x0 %.4f with all products in 8 bits", graph.stem, error)
        products = quantised_products(onnx.load(found, load_external_data=False))
        kept: tuple[str, ...] = ()
        if error > max_error:
            ranked = _sensitive(found, products, judging, expected)
            count, limit = 1, int(MAX_FLOAT_SHARE * len(products))
            while error > max_error and count <= limit:
                kept = tuple(ranked[:count])
                found = _write(_quantize(plain, calibrating, kept), Path(scratch), f"without-{count}")
                error = relative_error(expected, _predict(found, judging))
                log.info("%s: error of x0 %.4f with %d products kept in float32", graph.stem, error, count)
                count *= 2
        model = onnx.load(found)
        weights = f"weights/{graph.stem}.int8.bin"
        onnx.save_model(model, out / graph.name, save_as_external_data=True, location=weights, size_threshold=1024)
    return Report(graph.stem, len(products), kept, error_all, error)


def _fold(graph: Path, scratch: Path) -> Path:
    """The graph with float32 weights ready to use, as the calibration wants it: no casts or transpositions of them."""
    model = ir.from_proto(onnx.load(graph))
    everything = 1 << 62
    onnxscript.optimizer.optimize(model, input_size_limit=everything, output_size_limit=everything)
    path = scratch / "plain.onnx"
    ir.save(model, path, external_data="plain.bin")
    return path


def _quantize(plain: Path, calibrating: Sequence[Inputs], kept: Sequence[str]) -> ModelProto:
    import nncf  # slow to load, and wanted by this alone

    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = nncf.quantize(
        onnx.load(plain),
        nncf.Dataset(calibrating),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibrating),
        ignored_scope=nncf.IgnoredScope(names=list(kept)),
    )
    return model


def _write(model: ModelProto, scratch: Path, name: str) -> Path:
    path = scratch / f"{name}.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location=f"{name}.bin", size_threshold=1024)
    return path


def _predict(graph: Path, judging: Sequence[Inputs]) -> list[np.ndarray]:
    """x0 at each of the inputs."""
    runner = session(graph)
    return [runner.run(["x0"], inputs)[0] for inputs in judging]


def relative_error(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """√(Σ(got - expected)² / Σ expected²), over all arrays together."""
    wrong = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(expected, got, strict=True))
    return (wrong / sum(float(np.square(a.astype(np.float64)).sum()) for a in expected)) ** 0.5


def quantised_products(model: ModelProto) -> dict[str, int]:
    """Nodes that multiply quantised activations: their name and the place of that input."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            for place, name in enumerate(node.input[:2]):
                if _float_source(makers, name) is not None:
                    found.setdefault(node.name, place)
    return found


def _float_source(makers: dict[str, NodeProto], name: str) -> str | None:
    """The value that is quantised and restored to `name`; None if it is not, or is a stored weight."""
    restore = makers.get(name)
    if restore is None or restore.op_type != "DequantizeLinear":
        return None
    quantise = makers.get(restore.input[0])
    return quantise.input[0] if quantise is not None and quantise.op_type == "QuantizeLinear" else None


def _sensitive(
    graph: Path, products: dict[str, int], judging: Sequence[Inputs], expected: Sequence[np.ndarray]
) -> list[str]:
    """Products by how much x0's error falls when theirs alone are given unrounded activations, most first."""
    model = onnx.load(graph, load_external_data=False)
    makers = {name: node for node in model.graph.node for name in node.output}
    nodes = {node.name: node for node in model.graph.node}
    path = graph.with_name("probe.onnx")  # beside the weights that it shares
    left = {}
    for name in products:
        node = nodes[name]
        before = list(node.input)
        for place, value in enumerate(before[:2]):
            node.input[place] = _float_source(makers, value) or value
        onnx.save(model, path)
        left[name] = relative_error(expected, _predict(path, judging))
        for place, value in enumerate(before):
            node.input[place] = value
    return sorted(products, key=left.__getitem__)


def _finish(manifest: dict[str, Any], out: Path) -> None:
    """Vouch for the files that the modules use now, and remove those that none uses any more."""
    keep = {"tokenizer.json", *(name for name in manifest["files"] if name.endswith(".md"))}
    for module in manifest["modules"].values():
        keep.update((module["graph"], *module["weights"]))
    for name in set(manifest["files"]) - keep:
        (out / name).unlink()
    manifest["files"] = {}
    for name in sorted(keep):
        manifest["files"][name] = {"sha256": sha256_of(out / name), "bytes": (out / name).stat().st_size}
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command.

    Raises:
        SystemExit: with the reason, if the bundle or an argument cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="python -m models.export.quantize", description="Make a bundle's 8-bit variant."
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle to quantise")
    parser.add_argument("--out", type=Path, required=True, help="the variant's folder, new or empty")
    parser.add_argument("--prompts", type=Path, help="a prompt a line to calibrate with; without, eight are built in")
    parser.add_argument(
        "--max-error", type=float, default=0.03, help="relative error of x0 to stay below (default 0.03)"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        prompts: Sequence[str] = PROMPTS
        if options.prompts:
            lines = options.prompts.read_text(encoding="utf-8").splitlines()
            prompts = [line.strip() for line in lines if line.strip()]
        reports = quantize_bundle(options.bundle, options.out, prompts, options.max_error)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    for report in reports:
        print(
            f"{report.module}: {report.products - len(report.kept)} of {report.products} products in 8 bits, "
            f"error of x0 {report.error:.4f} ({report.error_all:.4f} with all)"
        )
        for name in report.kept:
            print(f"  kept in float32: {name}")
        if report.error > options.max_error:
            print(f"  the error stays above {options.max_error}: try more prompts, or do not use this variant")


if __name__ == "__main__":
    main()
