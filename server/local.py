"""`pixart generate` and `pixart doctor`: the engine without the HTTP server."""

import importlib.util
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.backends import names
from engine.bundle import Bundle
from engine.request import GenerateRequest, validate
from server import pictures
from server.runner import load_generator
from server.settings import Settings

Progress = Callable[[str], None]


def generate(settings: Settings, request: GenerateRequest, control: Path | None, output: Path, say: Progress) -> None:
    """Make one picture, write it as PNG, and print how long each stage took, with the modules warm.

    Raises:
        BundleError, CompileError, InvalidRequest, PictureError, OSError: no picture was written.
    """
    bundle = Bundle.load(settings.bundle)
    job = validate(request, bundle.manifest)
    if control is not None:
        data = control.read_bytes()
        pixels = pictures.read_control(data, request.control_kind, settings.max_control_pixels, job.size)
        request = replace(request, control=pixels)
    generator, _ = load_generator(bundle, settings.create_backend(), say)
    start = time.perf_counter()
    result = generator.generate(request)
    seconds = time.perf_counter() - start
    output.write_bytes(pictures.to_png(result.images[0]))
    if result.truncated:
        say(f"the prompt was cut to {bundle.manifest.max_tokens} tokens")
    stages = ", ".join(f"{stage} {1000 * spent:.1f}" for stage, spent in result.timings.items())
    say(f"{job.steps} steps in {1000 * seconds:.1f} ms ({stages})")
    say(f"wrote {output}, {job.size.width}x{job.size.height}, seed {job.seed}")


def doctor(settings: Settings, say: Progress) -> None:
    """Report what matters when something does not work; the last line is a picture that was made.

    Raises:
        BundleError, CompileError: what is wrong.
    """
    say(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    for name in names():
        found = importlib.util.find_spec(name) is not None
        say(f"backend {name}: {'installed' if found else 'not installed'}")
    bundle = Bundle.load(settings.bundle)
    say(f"bundle {bundle.manifest.name} at {bundle.folder}: every file is as it was exported")
    load_generator(bundle, settings.create_backend(), say)
    say("all well")
