"""Latency under load, beside LitServe: the same model on the same backend, over HTTP, with the same requests.

    python -m benchmarks.load [--loads 0.3 0.8 0.95] [--requests 240] [--mixed] [--json out.json]

LitServe runs without batching (first come, first served) and with each of `--peers` (batch size x window in
milliseconds). Capacity is what LitServe without batching makes for eight clients that ask again as soon as they are
answered. Requests arrive at random moments (Poisson) at shares of it, in blocks: each server in turn, in an order
shuffled anew, gets the same block at the same moments, so that a machine whose speed drifts is equally slow for all. A
block begins with empty queues; LitServe's processes, some of which spin when idle, are stopped while others are asked.
`--mixed` draws steps from 1 to the model's most, and gives every other request a control image.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from PIL import Image, ImageDraw

from benchmarks import machine
from benchmarks.client import Client, other, pixart
from engine.bundle import Bundle
from engine.manifest import Manifest

OURS = "this server"
FIFO = "LitServe, one by one"
CLIENTS = 8  # that measure the capacity
WARM_UP = 16  # requests to each server, before anything is measured
PEERS = ("4x0", "8x0", "4x20", "8x50")


@dataclass
class Score:
    """What one server did at one load: milliseconds of each request, and seconds that its blocks took."""

    milliseconds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def p50(self) -> float:
        """The median, in milliseconds."""
        return median(self.milliseconds)

    @property
    def p99(self) -> float:
        """The 99th percentile, in milliseconds."""
        return quantiles(self.milliseconds, n=100, method="inclusive")[98]

    @property
    def throughput(self) -> float:
        """Pictures a second."""
        return len(self.milliseconds) / self.seconds


def bodies(manifest: Manifest, mixed: bool, numbers: random.Random) -> Iterator[bytes]:
    """Requests without end; every prompt is a new one."""
    size = manifest.images.default
    edges = Image.new("L", (size.width, size.height))
    box = (size.width // 4, size.height // 4, 3 * size.width // 4, 3 * size.height // 4)
    ImageDraw.Draw(edges).ellipse(box, outline=255, width=2)
    buffer = io.BytesIO()
    edges.save(buffer, "PNG")
    control = {"image": base64.b64encode(buffer.getvalue()).decode(), "type": "edges"}
    for number in itertools.count():
        body: dict[str, object] = {"prompt": f"a red apple on a blue background {number}", "seed": number}
        if mixed:
            body["steps"] = numbers.randint(manifest.steps.min, manifest.steps.max)
            if manifest.controllable and number % 2:
                body["control"] = control
        yield json.dumps(body).encode()


async def ask(client: Client, body: bytes) -> None:
    """One picture, or an end of the benchmark."""
    answer = await client.ask(body)
    if answer.status != 200 or not answer.body.startswith(b"\x89PNG"):
        raise SystemExit(f"a server answered {answer.status}: {answer.body[:300]!r}")


async def capacity(client: Client, asked: Sequence[bytes]) -> float:
    """Pictures a second, for clients that wait for their answers."""
    waiting = iter(asked)

    async def one() -> None:
        for body in waiting:
            await ask(client, body)

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return len(asked) / (time.perf_counter() - start)


async def block(client: Client, asked: Sequence[bytes], moments: Sequence[float], score: Score) -> None:
    """Send each request at its moment, in seconds from now, and wait for all."""
    start = time.perf_counter()

    async def one(body: bytes, moment: float) -> None:
        await asyncio.sleep(start + moment - time.perf_counter())
        await ask(client, body)
        score.milliseconds.append(1000 * (time.perf_counter() - start - moment))

    await asyncio.gather(*(one(*pair) for pair in zip(asked, moments, strict=True)))
    score.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class Contender:
    """A server's client, and how to let it run."""

    client: Client
    awake: Callable[[], AbstractContextManager[None]]


async def measure(
    contenders: dict[str, Contender], source: Iterator[bytes], options: argparse.Namespace, say: Callable[[str], None]
) -> dict[float, dict[str, Score]]:
    """Scores by load and server."""
    numbers = random.Random(options.seed)
    for each in contenders.values():
        with each.awake():
            await capacity(each.client, list(itertools.islice(source, WARM_UP)))
    with contenders[FIFO].awake():
        rate = await capacity(contenders[FIFO].client, list(itertools.islice(source, options.requests // 2)))
    say(f"capacity of {FIFO}: {rate:.2f} pictures/s")
    results: dict[float, dict[str, Score]] = {}
    for load in options.loads:
        scores = results[load] = {name: Score() for name in contenders}
        for start in range(0, options.requests, options.block):
            count = min(options.block, options.requests - start)
            asked = list(itertools.islice(source, count))
            moments = list(itertools.accumulate(numbers.expovariate(load * rate) for _ in asked))
            order = list(contenders)
            numbers.shuffle(order)
            for name in order:
                with contenders[name].awake():
                    await block(contenders[name].client, asked, moments, scores[name])
        for line in table(load, scores):
            say(line)
    for each in contenders.values():
        each.client.close()
    return results


def table(load: float, scores: dict[str, Score]) -> Iterator[str]:
    """One load's rows, and how ours stands to the best peer by each metric."""
    for name, score in scores.items():
        yield f"| {load:.0%} | {name} | {score.p50:.0f} | {score.p99:.0f} | {score.throughput:.2f} |"
    ours = scores[OURS]
    peers = [score for name, score in scores.items() if name != OURS]
    p50, p99 = (getattr(ours, name) / min(getattr(peer, name) for peer in peers) for name in ("p50", "p99"))
    throughput = ours.throughput / max(peer.throughput for peer in peers)
    yield f"| {load:.0%} | ours / best peer's | {p50:.2f} × | {p99:.2f} × | {throughput:.2f} × |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Latency under load, beside LitServe.")
    parser.add_argument("--bundle", type=Path, default=Path("models/zoo/emoji"))
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--peers", nargs="*", default=PEERS, help="LitServe's settings: batch size x milliseconds")
    parser.add_argument("--loads", type=float, nargs="+", default=(0.3, 0.8, 0.95), help="shares of FIFO's capacity")
    parser.add_argument("--requests", type=int, default=240, help="to each server, at each load")
    parser.add_argument("--block", type=int, default=20, help="of these, one after the other to one server")
    parser.add_argument("--mixed", action="store_true", help="different steps, and control for every other request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every measured value here")
    options = parser.parse_args()
    common = ["--bundle", str(options.bundle), "--backend", options.backend]
    about = machine.describe("openvino", "litserve")
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    source = bodies(Bundle.load(options.bundle).manifest, options.mixed, random.Random(options.seed))
    with ExitStack() as stack:
        ours = stack.enter_context(pixart([*common, "--queue", str(options.requests + CLIENTS)]))
        # It does nothing when idle, and would take a pause for a worker that hangs.
        contenders = {OURS: Contender(Client(ours.address, "image/png"), nullcontext)}
        settings = {FIFO: (1, 0.0)}
        for setting in options.peers:
            batch, window = setting.split("x")
            settings[f"LitServe, batches of {batch} within {window} ms"] = (int(batch), float(window) / 1000)
        for name, (size, seconds) in settings.items():
            flags = ["--batch", str(size), "--window", str(seconds)]
            peer = stack.enter_context(other("benchmarks.litserve_peer", [*common, *flags]))
            contenders[name] = Contender(Client(peer.address, "image/png"), peer.awake)
            os.killpg(peer.group, signal.SIGSTOP)
        print("| load | server | median, ms | p99, ms | pictures/s |\n|---|---|---|---|---|")
        results = asyncio.run(measure(contenders, source, options, lambda line: print(line, flush=True)))
    if options.json:
        named = {
            f"{load:.0%}": {name: vars(score) for name, score in scores.items()} for load, scores in results.items()
        }
        options.json.write_text(json.dumps({"machine": about, **named}, indent=1) + "\n")


if __name__ == "__main__":
    main()
