"""`pixart bench`: how long this machine takes."""

import argparse
import asyncio
import json
import time
from dataclasses import replace

from server.cli import options as setting_options
from server.cli import request as request_options
from server.progress import progress
from server.settings import Settings

HELP = "Make pictures one after the other, without a server, and print the time of each stage."


def add(parser: argparse.ArgumentParser) -> None:
    """What to make, how often, and how to print it."""
    parser.add_argument("--prompt", default="a red apple on a blue background")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="pictures to make (20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    request_options.add(parser)
    setting_options.add(parser, setting_options.ENGINE)


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Print median and 95th percentile, in milliseconds, of each stage and of the whole, to standard output.

    Every prompt is a new one, so that none is known from before.

    Raises:
        BundleError, CompileError, InvalidRequest, PictureError, OSError: it cannot be done.
    """
    asyncio.run(_run(options, settings))


async def _run(options: argparse.Namespace, settings: Settings) -> None:
    import numpy as np

    from engine.bundle import Bundle
    from engine.request import InvalidRequest
    from server import local

    if not 1 <= options.count <= 1_000_000:
        raise InvalidRequest("count", "an integer from 1 to 1000000", f"is {options.count}")
    bundle = Bundle.load(settings.bundle)
    request = request_options.read(options, settings, bundle.manifest)
    laps: dict[str, list[float]] = {}
    async with local.warm_engine(bundle, settings, progress) as client:
        for index in range(options.count):
            start = time.perf_counter()
            picture = await local.picture(client, replace(request, prompt=f"{request.prompt} {index}"))
            timings = {**picture.timings, "all": time.perf_counter() - start}
            for stage, seconds in timings.items():
                laps.setdefault(stage, []).append(1000 * seconds)
    found = {
        stage: {"median_ms": round(float(np.median(times)), 2), "p95_ms": round(float(np.percentile(times, 95)), 2)}
        for stage, times in laps.items()
    }
    if options.json:
        print(json.dumps({"bundle": bundle.manifest.name, "backend": settings.backend, "count": options.count} | found))
        return
    print(f"{'stage':10}{'median ms':>12}{'p95 ms':>12}")
    for stage, figures in found.items():
        print(f"{stage:10}{figures['median_ms']:12.2f}{figures['p95_ms']:12.2f}")
