"""What a server does with ten times the requests that it can serve.

    python -m benchmarks.overload [--factor 10] [--seconds 60] [--deadline 2] [--json out.json] [serve's own options]

First its capacity is measured: eight clients that each ask again as soon as they are answered. Then requests arrive at
random moments, `factor` times as many, whether or not earlier ones were answered. Each names a deadline. A good server
refuses at once what it cannot make, keeps the deadlines of what it accepts, and makes as many pictures as before.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

CLIENTS = 8
PATIENCE = 60.0  # seconds that those wait for whom nothing is urgent
ROUTE = "/v1/images/generations"


@dataclass(frozen=True)
class Answer:
    """One request: its status, the seconds until its answer was there, and the Retry-After of a refusal."""

    status: int
    seconds: float
    retry_after: int | None


@dataclass(frozen=True)
class Report:
    """Rates are in requests a second, times in seconds."""

    capacity: float
    offered: float
    accepted: int
    refused: int
    failed: int  # neither a picture, nor refused, nor late
    kept: float  # the share of accepted requests that were answered within the deadline
    goodput: float  # pictures within the deadline, a second
    refusal_median: float
    refusal_p99: float
    retry_after: tuple[int, int]  # the least and the largest; (0, 0) if one was missing


class Client:
    """As many kept connections to one server as are needed at once."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._serial = 0

    async def ask(self, deadline: float) -> Answer:
        """Ask for one picture within `deadline` seconds, of a prompt that was not asked for before."""
        self._serial += 1
        body = json.dumps({"prompt": f"a red apple, number {self._serial}", "timeout": deadline}).encode()
        head = f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        start = time.perf_counter()
        while True:
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(*self._address)
            try:
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                break
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()  # the server closed it while it was idle
        length = re.search(r"content-length: (\d+)", answer)
        await reader.readexactly(int(length[1]) if length else 0)
        seconds = time.perf_counter() - start
        if "connection: close" in answer:
            writer.close()
        else:
            self._idle.append((reader, writer))
        after = re.search(r"retry-after: (\d+)", answer)
        return Answer(int(answer.split(" ", 2)[1]), seconds, int(after[1]) if after else None)

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()


async def closed_loop(client: Client, seconds: float) -> float:
    """Pictures a second, for clients that wait for their answers."""
    end = time.perf_counter() + seconds
    made = 0

    async def one() -> None:
        nonlocal made
        while time.perf_counter() < end:
            answer = await client.ask(PATIENCE)
            made += answer.status == 200 and time.perf_counter() < end

    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return made / seconds


async def open_loop(client: Client, rate: float, seconds: float, deadline: float, seed: int = 0) -> list[Answer]:
    """Requests at random moments, `rate` a second on average."""
    random_numbers = random.Random(seed)
    start = time.perf_counter()
    moment = 0.0
    tasks: list[asyncio.Task[Answer]] = []
    while (moment := moment + random_numbers.expovariate(rate)) < seconds:
        await asyncio.sleep(start + moment - time.perf_counter())
        tasks.append(asyncio.create_task(client.ask(deadline)))
    return list(await asyncio.gather(*tasks))


def summarise(capacity: float, answers: list[Answer], seconds: float, deadline: float) -> Report:
    """What the answers amount to."""
    refused = [answer for answer in answers if answer.status == 429]
    accepted = [answer for answer in answers if answer.status in (200, 504)]
    kept = [answer for answer in accepted if answer.status == 200 and answer.seconds <= deadline]
    waits = [answer.retry_after or 0 for answer in refused] or [0]
    times = [answer.seconds for answer in refused] or [0.0]
    return Report(
        capacity=capacity,
        offered=len(answers) / seconds,
        accepted=len(accepted),
        refused=len(refused),
        failed=len(answers) - len(refused) - len(accepted),
        kept=len(kept) / max(1, len(accepted)),
        goodput=len(kept) / seconds,
        refusal_median=median(times),
        refusal_p99=quantiles(times, n=100)[98] if len(times) > 1 else times[0],
        retry_after=(min(waits), max(waits)) if min(waits) else (0, 0),
    )


async def measure(host: str, port: int, factor: float, seconds: float, deadline: float) -> Report:
    """Measure a server that is ready."""
    client = Client(host, port)
    try:
        await closed_loop(client, seconds / 12)  # until its costs are known
        capacity = await closed_loop(client, seconds / 6)
        if not capacity:
            raise SystemExit("the server makes no pictures")
        answers = await open_loop(client, factor * capacity, seconds, deadline)
        return summarise(capacity, answers, seconds, deadline)
    finally:
        client.close()


def run(factor: float, seconds: float, deadline: float, options: list[str]) -> Report:
    """Start a server, measure it, and stop it."""
    command = [
        str(Path(sys.executable).with_name("pixart")),
        "serve",
        "--port",
        "0",
        "--log-level",
        "warning",
        *options,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next((line for line in process.stderr if "ready: http" in line), "")
            if not line:
                raise SystemExit("the server did not start")
            host, _, port = line.rpartition("//")[2].strip().rpartition(":")
            return asyncio.run(measure(host, int(port), factor, seconds, deadline))
        finally:
            process.terminate()
            with suppress(ValueError):
                process.communicate(timeout=60)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--factor", type=float, default=10.0, help="how many times its capacity (10)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--deadline", type=float, default=2.0, help="of each request, in seconds (2)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options, rest = parser.parse_known_args()
    report = run(options.factor, options.seconds, options.deadline, rest)
    for name, value in asdict(report).items():
        print(f"{name:16}{value:.4g}" if isinstance(value, float) else f"{name:16}{value}")
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1))


if __name__ == "__main__":
    main()
