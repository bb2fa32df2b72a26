"""The `pixart` command line: serve, generate, doctor."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from engine.backends import CompileError, Precision, names
from engine.bundle import BundleError
from engine.request import ControlKind, GenerateRequest, InvalidRequest
from server.local import doctor, generate
from server.pictures import PictureError
from server.progress import progress
from server.schemas import parse_size
from server.settings import Settings, SettingsError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exit status 1: a failure that the user can mend; 2: a wrong command line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace, Settings], None] = options.run
    try:
        run(options, _settings(options))
    except (BundleError, CompileError, InvalidRequest, PictureError, SettingsError, OSError) as error:
        sys.exit(f"pixart: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pixart", description="A low-latency inference server for PixArt-δ.")
    parser.add_argument("--version", action="version", version=version("pixart-delta-server"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="answer HTTP requests")
    serve.add_argument("--host", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (8000); 0: any free one")
    serve.set_defaults(run=_serve)

    one = commands.add_parser("generate", help="make one picture and print where the time went")
    one.add_argument("prompt")
    one.add_argument("-o", "--output", type=Path, default=Path("out.png"), help="PNG file to write (out.png)")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--steps", type=int, help="1 to 8 (the bundle's default)")
    one.add_argument("--size", default="auto", help="WIDTHxHEIGHT (the bundle's default)")
    one.add_argument("--control", type=Path, metavar="PICTURE", help="PNG, JPEG or WebP picture to follow")
    one.add_argument("--control-type", choices=get_args(ControlKind), default="edges", help="what PICTURE is (edges)")
    one.add_argument("--strength", type=float, default=1.0, help="how closely to follow it, 0 to 2 (1)")
    one.set_defaults(run=_generate)

    check = commands.add_parser("doctor", help="check this machine, the bundle, and one picture")
    check.set_defaults(run=_doctor)

    for command in (serve, one, check):
        command.add_argument("--bundle", type=Path, help="bundle folder (the demo that comes along)")
        command.add_argument("--backend", choices=names(), help="what runs the model (openvino)")
        command.add_argument("--precision", choices=get_args(Precision), help="arithmetic of the backend (f32)")
        command.add_argument("--threads", type=int, help="threads of the backend (0: as many as it likes)")
        command.add_argument("--cache", type=Path, help="folder for compiled modules (none: compile at every start)")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    return Settings.from_environment(
        bundle=options.bundle,
        backend=options.backend,
        precision=options.precision,
        threads=options.threads,
        cache=options.cache,
        host=getattr(options, "host", None),
        port=getattr(options, "port", None),
    )


def _serve(options: argparse.Namespace, settings: Settings) -> None:
    from server.serve import serve  # the HTTP packages take long to import, and only this command needs them

    serve(settings, progress)


def _generate(options: argparse.Namespace, settings: Settings) -> None:
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
    generate(settings, request, options.control, options.output, progress)


def _doctor(options: argparse.Namespace, settings: Settings) -> None:
    doctor(settings, progress)
