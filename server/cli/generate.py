"""`pixart generate`: one picture without a server."""

import argparse
import asyncio
import time
from pathlib import Path

from server.cli import options as setting_options
from server.cli import request as request_options
from server.pictures import Format
from server.progress import progress
from server.settings import Settings

HELP = "Make one picture and print where the time went."
_FORMATS: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", "": "png"}


def add(parser: argparse.ArgumentParser) -> None:
    """What to make, and where to put it."""
    parser.add_argument("prompt")
    parser.add_argument(
        "-o", "--output", type=_output, default=Path("out.png"), help="PNG, JPEG or WebP file to write (out.png)"
    )
    request_options.add(parser)
    setting_options.add(parser, setting_options.ENGINE)


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _FORMATS:
        raise argparse.ArgumentTypeError(f"{path}: the name must end in .png, .jpg, .jpeg or .webp")
    return path


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Write the picture, as its file's name asks for, and print how long each stage took, with the modules warm.

    Raises:
        BundleError, CompileError, InvalidRequest, PictureError, OSError: no picture was written.
    """
    asyncio.run(_run(options, settings))


async def _run(options: argparse.Namespace, settings: Settings) -> None:
    from engine.bundle import Bundle
    from server import local, pictures

    if not options.output.parent.is_dir():
        raise NotADirectoryError(f"{options.output}: there is no such folder")
    bundle = Bundle.load(settings.bundle)
    request = request_options.read(options, settings, bundle.manifest)
    async with local.warm_engine(bundle, settings, progress) as client:
        start = time.perf_counter()
        picture = await local.picture(client, request)
        seconds = time.perf_counter() - start
    options.output.write_bytes(pictures.encode(picture.image, _FORMATS[options.output.suffix.lower()]))
    if picture.truncated:
        progress(f"the prompt was cut to {bundle.manifest.max_tokens} tokens")
    stages = ", ".join(f"{stage} {1000 * spent:.1f}" for stage, spent in picture.timings.items())
    progress(f"{picture.steps} steps in {1000 * seconds:.1f} ms ({stages})")
    height, width = picture.image.shape[:2]
    progress(f"wrote {options.output}, {width}x{height}, seed {picture.seed}")
