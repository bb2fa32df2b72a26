"""What a server does with ten times the requests that it can serve.

    python -m benchmarks.overload [--factor 10] [--seconds 60] [--deadline 2] [--json out.json] [serve's own options]

First its capacity is measured: eight clients that each ask again as soon as they are answered. Then requests arrive at
random moments, `factor` times as many, whether or not earlier ones were answered. Each names a deadline. A good server
refuses at once what it cannot make, keeps the deadlines of what it accepts, and makes as many pictures as before.
Capacity is measured again afterwards, and the mean of both counts, because a machine's speed may drift. Each time the
server starts with nothing to do, and only what is answered before the time is over counts.
"""

import argparse
import asyncio
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks.client import Address, Answer, Client, pixart

CLIENTS = 8
PATIENCE = 60.0  # seconds that those wait for whom nothing is urgent


@dataclass(frozen=True)
class Report:
    """Rates are in requests a second, times in seconds."""

    capacity: float
    offered: float
    accepted: int
    refused: int
    failed: int  # neither a picture, nor refused, nor late
    kept: float  # the share of accepted requests that were answered within the deadline
    goodput: float  # pictures within the deadline and within the time, a second
    refusal_median: float
    refusal_p99: float
    retry_after: tuple[int, int]  # the least and the largest; (0, 0) if one was missing


@dataclass(frozen=True)
class Outcome:
    """An answer, and how many seconds after the first moment of the measurement it was there."""

    answer: Answer
    moment: float


class Prompts:
    """Asks for pictures of prompts that were not asked for before."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._serial = 0

    async def ask(self, deadline: float) -> Answer:
        """Ask for one picture within `deadline` seconds."""
        self._serial += 1
        body = {"prompt": f"a red apple, number {self._serial}", "timeout": deadline}
        return await self._client.ask(json.dumps(body).encode())


async def closed_loop(prompts: Prompts, seconds: float) -> float:
    """Pictures a second, for clients that wait for their answers."""
    now = asyncio.get_running_loop().time
    end = now() + seconds
    made = 0

    async def one() -> None:
        nonlocal made
        while now() < end:
            answer = await prompts.ask(PATIENCE)
            made += answer.status == 200 and now() <= end

    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return made / seconds


async def open_loop(prompts: Prompts, rate: float, seconds: float, deadline: float, seed: int = 0) -> list[Outcome]:
    """Requests at random moments, `rate` a second on average; all are waited for, those too that end afterwards."""
    random_numbers = random.Random(seed)
    now = asyncio.get_running_loop().time
    start = now()

    async def one() -> Outcome:
        answer = await prompts.ask(deadline)
        return Outcome(answer, now() - start)

    moment = 0.0
    tasks: list[asyncio.Task[Outcome]] = []
    while (moment := moment + random_numbers.expovariate(rate)) < seconds:
        await asyncio.sleep(start + moment - now())
        tasks.append(asyncio.create_task(one()))
    return list(await asyncio.gather(*tasks))


def summarise(capacity: float, outcomes: list[Outcome], seconds: float, deadline: float) -> Report:
    """What the answers amount to."""
    answers = [outcome.answer for outcome in outcomes]
    refused = [answer for answer in answers if answer.status == 429]
    accepted = [answer for answer in answers if answer.status in (200, 504)]
    kept = [one for one in outcomes if one.answer.status == 200 and one.answer.seconds <= deadline]
    waits = [answer.retry_after or 0 for answer in refused] or [0]
    times = [answer.seconds for answer in refused] or [0.0]
    return Report(
        capacity=capacity,
        offered=len(answers) / seconds,
        accepted=len(accepted),
        refused=len(refused),
        failed=len(answers) - len(refused) - len(accepted),
        kept=len(kept) / max(1, len(accepted)),
        goodput=sum(one.moment <= seconds for one in kept) / seconds,
        refusal_median=median(times),
        refusal_p99=quantiles(times, n=100)[98] if len(times) > 1 else times[0],
        retry_after=(min(waits), max(waits)) if min(waits) else (0, 0),
    )


async def measure(address: Address, factor: float, seconds: float, deadline: float) -> Report:
    """Measure a server that is ready."""
    client = Client(address)
    prompts = Prompts(client)
    try:
        await closed_loop(prompts, seconds / 12)  # until its costs are known
        capacity = await closed_loop(prompts, seconds / 6)
        if not capacity:
            raise SystemExit("the server makes no pictures")
        outcomes = await open_loop(prompts, factor * capacity, seconds, deadline)
        after = await closed_loop(prompts, seconds / 6)
        return summarise((capacity + after) / 2.0, outcomes, seconds, deadline)
    finally:
        client.close()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--factor", type=float, default=10.0, help="how many times its capacity (10)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--deadline", type=float, default=2.0, help="of each request, in seconds (2)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options, rest = parser.parse_known_args()
    with pixart(rest) as server:
        report = asyncio.run(measure(server.address, options.factor, options.seconds, options.deadline))
    for name, value in asdict(report).items():
        print(f"{name:16}{value:.4g}" if isinstance(value, float) else f"{name:16}{value}")
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1))


if __name__ == "__main__":
    main()
