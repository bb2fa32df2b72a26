"""A drawing client on the same machine: pictures a second, and the time from an input to its picture.

    python -m benchmarks.realtime [--seconds 20] [--rate 60] [--interrupt] [--url URL] [--json out.json]

The client draws a growing curve, sends the canvas `rate` times a second whatever comes back, as a page does, and
decodes every picture that it gets. Latency is measured in the client: from sending a drawing to having its picture
decoded. Without --url, a server of the bundle is started for the time of the measurement; the client and its encoding
of the drawings take their share of the same cores.
"""

import argparse
import asyncio
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from websockets.asyncio.client import ClientConnection, connect

from benchmarks import machine

WARM_UP = 2.0  # seconds
SIDE = 256


@dataclass
class Tally:
    """What happened to the drawings that were sent."""

    sent: dict[int, float] = field(default_factory=dict)  # when, by input
    latencies: list[float] = field(default_factory=list)  # milliseconds
    server_latencies: list[float] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    dropped: int = 0
    errors: int = 0
    bytes: int = 0


def drawing(turn: float) -> bytes:
    """A spiral of which `turn` (0 to 1) is drawn so far, as PNG."""
    canvas = Image.new("L", (SIDE, SIDE))
    points = [
        (
            SIDE / 2 + turn * i * math.cos(6 * turn * i / 40) / 1.1,
            SIDE / 2 + turn * i * math.sin(6 * turn * i / 40) / 1.1,
        )
        for i in range(101)
    ]
    ImageDraw.Draw(canvas).line(points, fill=255, width=6, joint="curve")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


async def _draw(socket: ClientConnection, tally: Tally, rate: float, until: float) -> None:
    start = time.perf_counter()
    number = 0
    while (now := time.perf_counter()) < until:
        number += 1
        data = drawing((number % 200 + 1) / 200)
        tally.sent[number] = time.perf_counter()
        await socket.send(data)
        await asyncio.sleep(max(0.0, start + number / rate - now))


async def _watch(socket: ClientConnection, tally: Tally) -> None:
    async for text in socket:
        message = json.loads(text)
        if message["type"] == "image.completed":
            data = await socket.recv()
            assert isinstance(data, bytes)
            Image.open(io.BytesIO(data)).load()
            now = time.perf_counter()
            tally.arrivals.append(now)
            tally.latencies.append(1000 * (now - tally.sent[message["input"]]))
            tally.server_latencies.append(1000 * message["latency"])
            tally.bytes += len(data)
        elif message["type"] == "dropped":
            tally.dropped += len(message["inputs"])
        elif message["type"] == "error":
            tally.errors += 1


async def measure(url: str, seconds: float, rate: float, settings: dict[str, Any]) -> dict[str, float]:
    """Draw for so long; figures of all but the warm-up. Latencies in milliseconds."""
    tally = Tally()
    async with connect(url.replace("http", "ws", 1) + "/v1/realtime", max_size=None, proxy=None) as socket:
        await socket.send(json.dumps({"type": "session.update", "session": settings}))
        watching = asyncio.create_task(_watch(socket, tally))
        begin = time.perf_counter() + WARM_UP
        await _draw(socket, tally, rate, begin + seconds)
        end = time.perf_counter()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    counted = [index for index, arrival in enumerate(tally.arrivals) if begin <= arrival <= end]
    if not counted:
        raise RuntimeError(f"no picture came in {seconds} s ({tally.errors} errors)")
    latencies = [tally.latencies[index] for index in counted]
    return {
        "pictures_per_second": len(counted) / (end - begin),
        "latency_p50": float(np.percentile(latencies, 50)),
        "latency_p95": float(np.percentile(latencies, 95)),
        "server_latency_p50": float(np.percentile([tally.server_latencies[index] for index in counted], 50)),
        "longest_gap": 1000 * max(np.diff([begin, *(tally.arrivals[index] for index in counted)])),
        "sent_per_second": len(tally.sent) / (end - begin + WARM_UP),
        "dropped": tally.dropped,
        "errors": tally.errors,
        "bytes_per_picture": tally.bytes / max(1, len(tally.arrivals)),
    }


@contextmanager
def server(bundle: Path) -> Iterator[str]:
    """A `pixart serve` process of its own, while it is needed; its address."""
    command = [str(Path(sys.executable).with_name("pixart")), "serve", "--bundle", str(bundle), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := line.partition("ready: ")[2].strip():
                yield found
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the real-time session with a drawing client.")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--bundle", type=Path, default=Path("models/zoo/emoji"))
    parser.add_argument("--prompt", default="a red apple on a blue background")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=60.0, help="drawings sent a second")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--previews", type=int, default=0)
    parser.add_argument("--interrupt", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    settings = {
        "prompt": options.prompt,
        "seed": 7,
        "steps": options.steps,
        "previews": options.previews,
        "interrupt": options.interrupt,
    }

    def run(url: str) -> dict[str, float]:
        return asyncio.run(measure(url, options.seconds, options.rate, settings))

    about = machine.describe("openvino", "uvicorn", "websockets")
    if options.url:
        figures = run(options.url)
    else:
        with server(options.bundle) as url:
            figures = run(url)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for name, value in figures.items():
        print(f"{name:>22} {value:10.1f}")
    if options.json:
        options.json.write_text(
            json.dumps({"machine": about, "settings": settings, "figures": figures}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
