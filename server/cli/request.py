"""The options that say what picture is wanted, as `generate` and `bench` have them."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import get_args

from engine.manifest import Manifest
from engine.request import ControlKind, GenerateRequest, validate
from server import pictures
from server.schemas import parse_size
from server.settings import Settings


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="1 to 8 (the bundle's default)")
    parser.add_argument("--size", default="auto", help="WIDTHxHEIGHT (the bundle's default)")
    parser.add_argument("--control", type=Path, metavar="PICTURE", help="PNG, JPEG or WebP picture to follow")
    parser.add_argument("--control-type", choices=get_args(ControlKind), default="edges", help="what it is (edges)")
    parser.add_argument("--strength", type=float, default=1.0, help="how closely to follow it, 0 to 2 (1)")


def read(options: argparse.Namespace, settings: Settings, manifest: Manifest) -> GenerateRequest:
    """What was asked for, found valid.

    Raises:
        InvalidRequest, PictureError, OSError: it cannot be made.
    """
    width, height = parse_size(options.size)
    request = GenerateRequest(
        prompt=options.prompt,
        seed=options.seed,
        steps=options.steps,
        width=width,
        height=height,
        control_kind=options.control_type,
        strength=options.strength,
    )
    job = validate(request, manifest)
    if options.control is None:
        return request
    data = options.control.read_bytes()
    try:
        pixels = pictures.read_control(data, request.control_kind, settings.max_control_pixels, job.size)
    except pictures.PictureError as error:
        raise pictures.PictureError(f"{options.control} {error}") from error
    return replace(request, control=pixels)
