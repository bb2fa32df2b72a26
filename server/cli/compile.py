"""`pixart compile`: engines ahead of time, for this machine's processor or for a GPU that is elsewhere."""

import argparse
import re
from pathlib import Path

from engine.manifest import NAME
from server.progress import progress
from server.settings import Settings

HELP = "Compile a model's modules for a backend, ahead of time."
BACKENDS = ("tensorrt", "tensorrt_rtx", "openvino", "onnxruntime")


def add(parser: argparse.ArgumentParser) -> None:
    """What to compile, for what, and where to."""
    parser.add_argument("--model", required=True, help="hub id, checkpoint, bundle folder, or a zoo name such as emoji")
    parser.add_argument("--controlnet", type=Path, help="control branch to attach to a checkpoint")
    parser.add_argument("--hed", type=Path, help="HED weights for --controlnet, whose edges are soft ones without")
    parser.add_argument("--lora", type=Path, help="LoRA to merge into a checkpoint, such as LCM-LoRA")
    parser.add_argument("--components", help="T5, VAE and tokenizer for a .pth checkpoint: a folder or hub id")
    # Not `backend` and `precision`: those names are settings of the server.
    parser.add_argument("--backend", dest="compile_backend", required=True, choices=BACKENDS)
    parser.add_argument(
        "--precision",
        dest="compile_precision",
        choices=("fp16", "bf16", "fp32", "int8"),
        help="fp16 for TensorRT, else what `serve` takes by itself; int8: an 8-bit variant, not for TensorRT",
    )
    parser.add_argument("--profile", default="", help="sizes to compile for, e.g. 512,1024 or 640x384 (the bundle's)")
    parser.add_argument("--max-batch", type=_batch, help="samples in one call, at most (the bundle's, or 8)")
    parser.add_argument("--target", default="", help="GPUs to compile for, e.g. sm80,sm89 (this machine's)")
    parser.add_argument("--out", type=Path, help="the bundle's folder (where it is; needed for a checkpoint)")
    parser.add_argument("--name", type=_name, help="the model's name in the API (from --model)")
    parser.add_argument("--licence", help="licence of a checkpoint's weights, SPDX (LicenseRef-unknown)")


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Compile, and print the report.

    Raises:
        BundleError, CompileError: what cannot be done.
    """
    from server.compile import CompileRequest, compile_model, table

    usual = "fp16" if options.compile_backend.startswith("tensorrt") else "auto"
    request = CompileRequest(
        model=options.model,
        backend=options.compile_backend,
        precision=options.compile_precision or usual,
        profiles=_list(options.profile),
        max_batch=options.max_batch,
        targets=_list(options.target),
        out=options.out,
        controlnet=options.controlnet,
        hed=options.hed,
        lora=options.lora,
        components=options.components,
        name=options.name,
        licence=options.licence,
        threads=settings.threads,
    )
    print(table(compile_model(request, progress)))


def _name(text: str) -> str:
    if re.fullmatch(NAME, text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not 1 to 64 of a-z, 0-9, dot, hyphen and underscore, a letter or digit first"
        )
    return text


def _batch(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _list(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
