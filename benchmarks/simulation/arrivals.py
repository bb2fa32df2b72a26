"""Traffic: when requests arrive and what they ask for."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

from engine.costs import CostModel
from engine.request import Priority
from engine.ticket import Preparation, Shape, Stage, Ticket

Times = Iterator[float]  # seconds, rising


@dataclass(frozen=True)
class Kind:
    """One kind of request, `weight` times as frequent as one of weight 1. `timeout` is in seconds (None: none)."""

    shape: Shape
    steps: int = 4
    min_steps: int | None = None
    control: bool = False
    timeout: float | None = None
    priority: Priority = "interactive"
    weight: float = 1.0

    def ticket(self, id: str, arrived: float) -> Ticket:
        """A request of this kind."""
        return Ticket(
            id,
            self.shape,
            self.steps,
            self.min_steps or self.steps,
            arrived,
            key=id,
            deadline=None if self.timeout is None else arrived + self.timeout,
            priority=self.priority,
            encode=Preparation(text=True, control=self.control),
        )


def poisson(rate: float, seed: int) -> Times:
    """Independent arrivals, `rate` a second."""
    generator, now = random.Random(seed), 0.0
    while True:
        now += generator.expovariate(rate)
        yield now


def bursty(rate: float, seed: int, high: float = 3.0, share: float = 0.2, length: float = 20.0) -> Times:
    """Bursts of `high` times the mean rate that last for `length` mean arrivals and take `share` of the time.

    A Markov-modulated Poisson process of two states; the rate between bursts keeps the mean at `rate`.
    """
    generator, now = random.Random(seed), 0.0
    low = (1.0 - high * share) / (1.0 - share)
    burst, ends = False, 0.0
    while True:
        while True:
            step = generator.expovariate(rate * (high if burst else low))
            if now + step < ends:
                break
            now = ends
            burst = not burst
            mean = length / rate * (1.0 if burst else (1.0 - share) / share)
            ends = now + generator.expovariate(1.0 / mean)
        now += step
        yield now


def recorded(path: Path, rate: float) -> Times:
    """The arrivals of a log: JSON lines with the time `at` in seconds, stretched to a mean of `rate` and repeated.

    Raises:
        ValueError: fewer than two arrivals, or times that do not rise.
    """
    times = [float(json.loads(line)["at"]) for line in path.read_text().splitlines() if line.strip()]
    if len(times) < 2 or times[-1] <= times[0] or any(a > b for a, b in pairwise(times)):
        raise ValueError(f"{path}: no arrivals in rising order")
    mean = (times[-1] - times[0]) / (len(times) - 1)
    start = 0.0
    while True:
        for at in times:
            yield start + (at - times[0]) / (mean * rate)
        start += len(times) / rate


def tickets(times: Iterable[float], kinds: Sequence[Kind], count: int, seed: int) -> list[Ticket]:
    """The first `count` requests."""
    generator = random.Random(seed)
    weights = [kind.weight for kind in kinds]
    chosen = generator.choices(kinds, weights, k=count)
    return [kind.ticket(str(i), at) for i, (kind, at) in enumerate(zip(chosen, islice(times, count), strict=True))]


def capacity(kinds: Sequence[Kind], costs: CostModel, max_batch: int) -> float:
    """Requests a second that one device could sustain if every call had its most efficient batch size."""

    def least(stage: Stage, shape: Shape) -> float:
        return min(costs.seconds(stage, shape, size) / size for size in range(1, max_batch + 1))

    def seconds(kind: Kind) -> float:
        prepared = costs.seconds("text", None) + (costs.seconds("control", kind.shape) if kind.control else 0.0)
        return prepared + kind.steps * least("denoise", kind.shape) + least("decode", kind.shape)

    return sum(kind.weight for kind in kinds) / sum(kind.weight * seconds(kind) for kind in kinds)


TRAFFIC: dict[str, Callable[[float, int], Times]] = {"poisson": poisson, "bursty": bursty}
