"""What the edge adds to the engine's own time, and how long it ever keeps its event loop.

    python -m benchmarks.http [--requests 200] [--clients 4] [--control 2000] [--json out.json] [serve's own options]

The server runs in this process, its engine in worker processes, the client in a process of its own. First requests
come one after the other, for a PNG and for JSON in turn, each with a prompt that was not asked for before, so that its
text is encoded: each one's overhead is its time at the client, less the engine's stages as its answer tells them. Then
several clients ask at once, every other time with a large control image in base64, while a task on the server's loop
notes how much later it wakes than it wanted to.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import multiprocessing
import socket
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import uvicorn
import uvloop
from PIL import Image

from engine.bundle import Bundle
from engine.options import PoolOptions
from engine.pool import Pool
from server.app import create_app
from server.metrics import Metrics
from server.progress import progress
from server.serve import configure, listen
from server.settings import Settings

ROUTE = "/v1/images/generations"
PROMPT = "a red apple on a blue background"
TYPES = ("image/png", "application/json")
WARM_UP = 5
TICK = 0.001  # seconds
START = 300.0  # seconds before a server that is not ready counts as broken


@dataclass(frozen=True)
class Asked:
    """Seconds of one request: at the client, in the engine, of these for its text, and encoding the picture."""

    total: float
    engine: float
    text: float
    encode: float


@dataclass(frozen=True)
class Alone:
    """Milliseconds of requests that come one after the other; `overhead` includes encoding the picture."""

    total_p50: float
    engine_p50: float
    text_p50: float
    encode_p50: float
    overhead_p50: float
    overhead_p95: float

    @classmethod
    def of(cls, asked: Sequence[Asked]) -> "Alone":
        """What the requests amount to."""
        overheads = [1000 * (one.total - one.engine) for one in asked]
        total, engine, text, encode = (
            1000 * median(getattr(one, name) for one in asked) for name in ("total", "engine", "text", "encode")
        )
        return cls(total, engine, text, encode, median(overheads), quantiles(overheads, n=20)[-1])


@dataclass(frozen=True)
class Report:
    """Requests one after the other, and milliseconds of `lag` of the server's loop while clients load it."""

    png: Alone
    json: Alone
    loaded_answers: int
    lag_p50: float
    lag_p99: float
    lag_max: float


def ask(url: str, requests: int) -> dict[str, list[Asked]]:
    """Ask for as many pictures of each of `TYPES`, in turn."""
    found: dict[str, list[Asked]] = {kind: [] for kind in TYPES}
    # The standard library's client takes little time itself; httpx would add a millisecond.
    with closing(HTTPConnection(url.removeprefix("http://"), timeout=START)) as connection:
        for number, kind in itertools.product(range(WARM_UP + requests), TYPES):
            body = json.dumps({"prompt": f"{PROMPT}, for {kind} number {number}", "seed": number})
            start = time.perf_counter()
            connection.request("POST", ROUTE, body, {"Content-Type": "application/json", "Accept": kind})
            response = connection.getresponse()
            answer = response.read()
            total = time.perf_counter() - start
            if response.status != 200:
                raise SystemExit(f"the server answered {response.status}: {answer.decode()}")
            timings = _timings(response.headers.get("Server-Timing"), answer)
            encode = timings.pop("encode")
            found[kind].append(Asked(total, sum(timings.values()), timings["text"], encode))
    return {kind: asked[WARM_UP:] for kind, asked in found.items()}


def _timings(header: str | None, answer: bytes) -> dict[str, float]:
    """Seconds by stage: in the header of a picture's bytes, and in the body of JSON."""
    if header is None:
        found: dict[str, float] = json.loads(answer)["timings"]
        return found
    stages = (part.partition(";dur=") for part in header.split(", "))
    return {stage: float(milliseconds) / 1000 for stage, _, milliseconds in stages}


async def crowd(url: str, requests: int, clients: int, side: int) -> int:
    """Ask from several clients at once; returns how many got a picture."""
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 80.0).save(buffer, "PNG", compress_level=1)
    control = {"image": base64.b64encode(buffer.getvalue()).decode(), "type": "picture"}
    plain = json.dumps({"prompt": PROMPT}).encode()
    large = json.dumps({"prompt": PROMPT, "control": control}).encode()
    headers = {"Content-Type": "application/json"}

    async def one(client: httpx.AsyncClient) -> int:
        done = 0
        for number in range(requests // clients):
            response = await client.post(ROUTE, content=(plain, large)[number % 2], headers=headers)
            done += response.status_code == 200
        return done

    async with httpx.AsyncClient(base_url=url, timeout=START) as client:
        return sum(await asyncio.gather(*(one(client) for _ in range(clients))))


def client(url: str, requests: int, clients: int, side: int, pipe: Connection) -> None:
    """The client's process: sends what it measured one after the other, waits for a word, then sends the count."""
    pipe.send(ask(url, requests))
    pipe.recv()
    pipe.send(asyncio.run(crowd(url, requests, clients, side)))


async def tick(lags: list[float]) -> None:
    """Note how late each of many short sleeps ends, in seconds."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + TICK
        await asyncio.sleep(TICK)
        lags.append(loop.time() - due)


async def measure(settings: Settings, requests: int, clients: int, side: int) -> Report:
    """Serve, and let the client's process ask."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def loaded(failure: BaseException | None) -> None:
        if failure is None:
            ready.set_result(None)
        else:
            ready.set_exception(failure)

    bundle = Bundle.load(settings.bundle)
    pool = Pool(bundle, settings.backends(), PoolOptions(capacity=settings.queue), progress)
    listener = listen("127.0.0.1", 0)
    metrics = Metrics()
    server = uvicorn.Server(configure(create_app(settings, pool, metrics, loaded), settings, metrics))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await ready
    ours, theirs = multiprocessing.Pipe()
    url = f"http://127.0.0.1:{_port(listener)}"
    arguments = (url, requests, clients, side, theirs)
    process = multiprocessing.get_context("spawn").Process(target=client, args=arguments, daemon=True)
    process.start()
    theirs.close()  # so that its end is noticed
    alone = await asyncio.to_thread(ours.recv)
    lags: list[float] = []
    ticking = asyncio.create_task(tick(lags))
    ours.send("go")
    answered = await asyncio.to_thread(ours.recv)
    ticking.cancel()
    with suppress(asyncio.CancelledError):
        await ticking
    server.should_exit = True
    await serving
    return _report(alone, answered, lags)


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def _report(alone: dict[str, list[Asked]], answered: int, lags: list[float]) -> Report:
    late = [1000 * lag for lag in lags]
    return Report(
        png=Alone.of(alone["image/png"]),
        json=Alone.of(alone["application/json"]),
        loaded_answers=answered,
        lag_p50=median(late),
        lag_p99=quantiles(late, n=100)[-1],
        lag_max=max(late),
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200, help="PNG, JSON, and of several clients, each (200)")
    parser.add_argument("--clients", type=int, default=4, help="that ask at once (4)")
    parser.add_argument("--control", type=int, default=2000, help="pixels of a large control image's side (2000)")
    parser.add_argument("--json", type=Path, help="file to write the report to")
    known, rest = parser.parse_known_args(arguments)
    settings = Settings.load(_options(rest))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as uvicorn does when it is in charge
        report = runner.run(measure(settings, known.requests, known.clients, known.control))
    figures = asdict(report)
    alone = {f"{kind} {name}": value for kind in ("png", "json") for name, value in figures.pop(kind).items()}
    for name, value in (alone | figures).items():
        print(f"{name:>18} {value:8.2f}" if isinstance(value, float) else f"{name:>18} {value:8d}")
    if known.json is not None:
        known.json.write_text(json.dumps(asdict(report), indent=2) + "\n")


def _options(words: list[str]) -> dict[str, Any]:
    """`--name value` pairs as settings."""
    return {
        name.removeprefix("--").replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)
    }


if __name__ == "__main__":
    main()
