"""What serving adds to the engine's own time, on this machine.

    python -m benchmarks.serving [--pictures 200] [--threads 1] [--json out.json]

The same pictures through `engine.generate.Generator` in this process and through a pool with one worker, one at a time
and in shuffled order; what differs is the scheduler, the loop and the way between processes. What it is worth under
load: `benchmarks.load`.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import machine
from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.client import EngineClient, Picture
from engine.generate import Generator
from engine.options import backends
from engine.pool import Pool
from engine.request import GenerateRequest

WARM_UP = 5


async def picture(client: EngineClient, request: GenerateRequest, name: str) -> Picture:
    """The last event."""
    async for event in client.submit(request, name):
        if isinstance(event, Picture):
            return event
    raise AssertionError("an engine's last event is a picture")


async def overhead(pool: Pool, generator: Generator, asked: Sequence[GenerateRequest]) -> dict[str, list[float]]:
    """Milliseconds of each picture, by way."""
    times: dict[str, list[float]] = {"engine": [], "pool": []}
    for number, request in enumerate(asked):
        ways = list(times)
        random.shuffle(ways)
        for way in ways:
            start = time.perf_counter()
            if way == "engine":
                generator.generate(request)
            else:
                await picture(pool, request, str(number))
            if number >= WARM_UP:
                times[way].append(1000 * (time.perf_counter() - start))
    return times


async def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each picture, by way."""
    bundle = Bundle.load(options.bundle)
    backend = BackendOptions(precision="auto", threads=options.threads)
    pool = Pool(bundle, backends(options.backend, backend, 1))
    asked = [
        GenerateRequest(f"a red apple on a blue background {i}", seed=i) for i in range(WARM_UP + options.pictures)
    ]
    try:
        await pool.start()
        times = await overhead(pool, Generator(bundle, create(options.backend, backend)), asked)
    finally:
        await pool.close(0.0)
    # Of pairs, because a machine's speed may drift.
    added = median(pool - engine for pool, engine in zip(times["pool"], times["engine"], strict=True))
    share = 100 * added / median(times["engine"])
    print(f"one at a time, median: engine {median(times['engine']):.2f} ms, pool {median(times['pool']):.2f} ms")
    print(f"serving adds {added:.2f} ms, {share:.1f} % of the engine's time")
    return times


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Time what serving adds.")
    parser.add_argument("--bundle", type=Path, default=Path("models/zoo/emoji"))
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--threads", type=int, default=1, help="of each engine (1, so that none disturbs the other)")
    parser.add_argument("--pictures", type=int, default=200, help="pictures to measure the overhead with")
    parser.add_argument("--json", type=Path, help="write every measured value here")
    options = parser.parse_args()
    about = machine.describe(options.backend)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = asyncio.run(measure(options))
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "overhead": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
