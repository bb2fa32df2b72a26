"""Checkpoint to bundle: `python -m models.export --weights CHECKPOINT --out FOLDER …`; see docs/bundle.md."""

import argparse
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from models.checkpoints import build, load_checkpoint, write_tokenizer
from models.checkpoints.errors import CheckpointError
from models.checkpoints.hed import read_hed
from models.edges import SoftEdge
from models.export.bundle import Card, export_bundle
from models.export.modules import Parts

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"  # as the engine's manifest has it


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT")
    return int(match[1]), int(match[2])


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


def _refuse_another(out: Path, name: str, origin: str) -> None:
    """Before any work: a bundle of the same name and origin is exported anew, another one is left alone."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    found = (manifest.get("name"), manifest.get("origin")) if isinstance(manifest, dict) else ()
    if found != (name, origin):
        raise ValueError(f"{out} holds another bundle; choose another folder")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.export", description="Export a checkpoint as a bundle.")
    parser.add_argument("--weights", required=True, help="checkpoint: a folder (ours or diffusers'), .pth or hub id")
    parser.add_argument("--controlnet", type=Path, help="control branch to attach, PixArt's .pth or safetensors")
    parser.add_argument("--lora", type=Path, help="LoRA to merge")
    parser.add_argument("--components", help="T5, VAE and tokenizer for a .pth: a folder or hub id")
    parser.add_argument("--hed", type=Path, help="HED weights for the edge detector; without, soft edges")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder; a README.md there joins it")
    parser.add_argument("--name", type=_name, required=True, help="the model's name in the API")
    parser.add_argument("--licence", required=True, help="licence of the weights, an SPDX expression")
    parser.add_argument("--origin", required=True, help="where the weights come from")
    parser.add_argument(
        "--size",
        type=_size,
        action="append",
        default=[],
        help="an allowed image size, e.g. 128x128; the first is the default",
    )
    parser.add_argument("--max-batch", type=_batch, default=8, help="samples in one call, at most (default 8)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command.

    Raises:
        SystemExit: with the reason, if the checkpoint or an argument cannot be used.
    """
    args = _arguments().parse_args(arguments)
    card = Card(args.name, args.licence, args.origin, tuple(args.size), args.max_batch)
    try:
        _refuse_another(args.out, args.name, args.origin)
        checkpoint = load_checkpoint(
            args.weights, controlnet=args.controlnet, lora=args.lora, components=args.components
        )
        modules = build(checkpoint)
        if args.hed and modules.controlnet is None:
            raise ValueError(f"--hed: {args.weights} has no control branch to find edges for; attach --controlnet")
        edges: nn.Module | None = None
        if modules.controlnet is not None:
            edges = read_hed(args.hed) if args.hed else SoftEdge()
        parts = Parts(checkpoint.config, modules.text_encoder, modules.dit, modules.vae, modules.controlnet, edges)
        with TemporaryDirectory() as scratch:
            tokenizer = Path(scratch) / "tokenizer.json"
            write_tokenizer(checkpoint.tokenizer, tokenizer)
            manifest = export_bundle(parts, tokenizer, args.out, card)
    except (CheckpointError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(f"{args.out}: {len(manifest['modules'])} modules, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
