"""What both commands share: their options, the model with its prepared data, and how they refuse."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.checkpoints import Checkpoint, CheckpointError, load_checkpoint
from models.checkpoints.build import build_dit, build_vae
from models.dit import DiT
from training import config as recipes
from training.origin import fingerprint, tables
from training.published.device import Placement
from training.published.prepared import PreparedSet
from training.published.samples import Decoder


def command_line(description: str) -> argparse.ArgumentParser:
    """The options of every stage, and those that name model, data and device."""
    parser = recipes.command_line(description)
    parser.add_argument("--model", required=True, help="checkpoint: a folder (ours or diffusers'), .pth or hub id")
    parser.add_argument("--components", help="T5, VAE and tokenizer for a .pth: a folder or hub id")
    parser.add_argument("--data", type=Path, required=True, help="folder that training.published.prepare has written")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


@dataclass(frozen=True)
class Opened:
    """What a stage is made of: the model as it was read, its transformer in float32, and data prepared for it."""

    checkpoint: Checkpoint
    dit: DiT
    data: PreparedSet
    place: Placement
    decoder: Decoder

    def origin(self, recipe: Mapping[str, Any], stage: str) -> dict[str, str]:
        """What the weights of the stage come from that reads this table of the recipe."""
        model = fingerprint(self.checkpoint.dit)
        return tables(recipe, stage) | {"model": model, "prepared data": self.data.digest}


def open_model(args: argparse.Namespace) -> Opened:
    """The checkpoint, data and device that the command line names.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ValueError: the data was not prepared, or for another model.
    """
    checkpoint = load_checkpoint(args.model, components=args.components)
    data = PreparedSet(args.data)
    data.check(checkpoint)
    place = Placement.on(args.device)
    decoder = Decoder(build_vae(checkpoint), checkpoint.config.latent, place.device)
    return Opened(checkpoint, build_dit(checkpoint), data, place, decoder)


@contextmanager
def refusals() -> Iterator[None]:
    """What cannot be used ends the command with one sentence.

    Raises:
        SystemExit: with the reason.
    """
    try:
        yield
    except (CheckpointError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
