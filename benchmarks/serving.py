"""What serving adds to the engine's own time, and what continuous batching is worth under load, on this machine.

    python -m benchmarks.serving [--pictures 200] [--requests 200] [--mixed] [--threads 1] [--json out.json]

Overhead: the same pictures through `engine.generate.Generator` in this process and through a pool with one worker, one
at a time and in shuffled order; what differs is the scheduler, the loop and the way between processes.

Load: requests arrive at random moments (Poisson) at shares of the capacity of first come, first served
(`engine.local.LocalClient`, one by one), which is measured first. Both serve the same requests at the same moments.
`--mixed` draws steps from 1 to 8 and gives every other request a control image.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, quantiles

import numpy as np

from benchmarks import machine
from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.client import EngineClient, Picture
from engine.generate import Generator
from engine.local import LocalClient
from engine.manifest import Manifest
from engine.options import PoolOptions, backends
from engine.pool import Pool
from engine.request import GenerateRequest

LOADS = (0.3, 0.8, 0.95)
WARM_UP = 5


async def picture(client: EngineClient, request: GenerateRequest, name: str) -> Picture:
    """The last event."""
    async for event in client.submit(request, name):
        if isinstance(event, Picture):
            return event
    raise AssertionError("an engine's last event is a picture")


def requests(manifest: Manifest, count: int, mixed: bool, order: random.Random) -> list[GenerateRequest]:
    """Pictures to ask for; every prompt is a new one."""
    size = manifest.images.default
    control = np.zeros((size.height, size.width, 3), np.uint8)
    control[size.height // 4 : -size.height // 4, size.width // 4 : -size.width // 4] = 255
    found = []
    for number in range(count):
        request = GenerateRequest(f"a red apple on a blue background {number}", seed=number)
        if mixed:
            steps = order.randint(manifest.steps.min, manifest.steps.max)
            request = replace(request, steps=steps)
            if manifest.controllable and number % 2:
                request = replace(request, control=control)
        found.append(request)
    return found


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


async def capacity(client: EngineClient, asked: Sequence[GenerateRequest]) -> float:
    """Pictures a second, one after the other."""
    times = []
    for number, request in enumerate(asked):
        start = time.perf_counter()
        await picture(client, request, str(number))
        times.append(time.perf_counter() - start)
    return 1.0 / mean(times[WARM_UP:])


async def under_load(
    client: EngineClient, asked: Sequence[GenerateRequest], moments: Sequence[float]
) -> tuple[list[float], float]:
    """Milliseconds from each arrival to its picture, and pictures a second over the whole."""
    start = time.perf_counter()

    async def one(number: int) -> float:
        await asyncio.sleep(start + moments[number] - time.perf_counter())
        await picture(client, asked[number], str(number))
        return 1000 * (time.perf_counter() - start - moments[number])

    times = await asyncio.gather(*(one(number) for number in range(len(asked))))
    return times, len(asked) / (time.perf_counter() - start)


def p99(times: Sequence[float]) -> float:
    """The 99th percentile."""
    return quantiles(times, n=100, method="inclusive")[98]


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Everything; prints as it goes."""
    bundle = Bundle.load(options.bundle)
    backend = BackendOptions(precision="auto", threads=options.threads)
    order = random.Random(options.seed)
    pool = Pool(bundle, backends(options.backend, backend, 1), PoolOptions(capacity=options.requests))
    local = LocalClient(bundle, lambda: create(options.backend, backend), options.requests)
    results: dict[str, object] = {}
    try:
        await pool.start()
        generator = Generator(bundle, create(options.backend, backend))
        asked = requests(bundle.manifest, WARM_UP + options.pictures, False, order)
        times = await overhead(pool, generator, asked)
        added = median(times["pool"]) - median(times["engine"])
        share = 100 * added / median(times["engine"])
        print(f"one at a time, median: engine {median(times['engine']):.2f} ms, pool {median(times['pool']):.2f} ms")
        print(f"serving adds {added:.2f} ms, {share:.1f} % of the engine's time")
        results["overhead"] = times

        await local.start()
        asked = requests(bundle.manifest, options.requests, options.mixed, order)
        rate = await capacity(local, asked[: max(2 * WARM_UP, len(asked) // 4)])
        print(f"first come, first served: {rate:.2f} pictures/s")
        print("| load | engine | median, ms | p99, ms | pictures/s |\n|---|---|---|---|---|")
        for load in LOADS:
            moments = np.cumsum([order.expovariate(load * rate) for _ in asked]).tolist()
            clients: list[tuple[str, EngineClient]] = [("FIFO", local), ("pool", pool)]
            order.shuffle(clients)
            for name, client in clients:
                latencies, throughput = await under_load(client, asked, moments)
                row = f"{median(latencies):.1f} | {p99(latencies):.1f} | {throughput:.2f}"
                print(f"| {load:.0%} | {name} | {row} |", flush=True)
                results[f"{name} at {load:.0%}"] = {"milliseconds": latencies, "throughput": throughput}
        results["batch sizes"] = dict(pool.stats().batch_sizes)
    finally:
        await pool.close(0.0)
        await local.close(0.0)
    return results


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Time what serving adds, and latency under load beside FIFO.")
    parser.add_argument("--bundle", type=Path, default=Path("models/zoo/emoji"))
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--threads", type=int, default=1, help="of each engine (1, so that none disturbs the other)")
    parser.add_argument("--pictures", type=int, default=200, help="pictures to measure the overhead with")
    parser.add_argument("--requests", type=int, default=200, help="requests at each load")
    parser.add_argument("--mixed", action="store_true", help="different steps, and control for every other request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every measured value here")
    options = parser.parse_args()
    about = machine.describe(options.backend)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = asyncio.run(measure(options))
    if options.json:
        options.json.write_text(json.dumps({"machine": about, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
