"""What both commands share: their options, and the model with its prepared data."""

import argparse
from pathlib import Path

import torch

from models.checkpoints import Checkpoint, load_checkpoint
from training import config as recipes
from training.published.prepared import PreparedSet


def command_line(description: str) -> argparse.ArgumentParser:
    """The options of every stage, and those that name model, data and device."""
    parser = recipes.command_line(description)
    parser.add_argument("--model", required=True, help="checkpoint: a folder (ours or diffusers'), .pth or hub id")
    parser.add_argument("--components", help="T5, VAE and tokenizer for a .pth: a folder or hub id")
    parser.add_argument("--data", type=Path, required=True, help="folder that training.published.prepare has written")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def open_model(args: argparse.Namespace) -> tuple[Checkpoint, PreparedSet]:
    """The checkpoint that the command line names, and data that was prepared for it.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ValueError: the data was not prepared, or for another model.
    """
    checkpoint = load_checkpoint(args.model, components=args.components)
    data = PreparedSet(args.data)
    data.check(checkpoint.config.dit)
    return checkpoint, data
