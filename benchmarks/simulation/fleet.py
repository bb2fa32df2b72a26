"""How many devices a rate of requests needs."""

from collections.abc import Sequence

from benchmarks.simulation.arrivals import Kind, capacity, poisson, tickets
from benchmarks.simulation.baselines import Ours
from benchmarks.simulation.curves import Table
from benchmarks.simulation.events import simulate
from benchmarks.simulation.report import Summary, summarise
from benchmarks.simulation.scenarios import alone
from engine.costs import CostModel

MOST = 64


def devices(
    table: Table, kinds: Sequence[Kind], rate: float, p99: float, count: int = 4000, max_batch: int = 8
) -> tuple[int, Summary]:
    """The least number that keeps the 99th percentile of latencies within `p99` seconds, and the figures then.

    Raises:
        ValueError: not even 64 do, or some request takes longer even alone.
    """
    if (slowest := max(alone(kind, table) for kind in kinds)) > p99:
        raise ValueError(f"a request takes {slowest:.3f} s alone, so no number of devices is enough")
    costs = CostModel(table)
    least = max(1, int(rate / capacity(kinds, costs, max_batch)))
    arriving = tickets(poisson(rate, 1), kinds, count, 1)
    for number in range(least, MOST + 1):
        fleet = [Ours(CostModel(table), max_batch, count) for _ in range(number)]
        summary = summarise(simulate(fleet, arriving, costs))
        if summary.p99 <= p99:
            return number, summary
    raise ValueError(f"{MOST} devices do not keep the 99th percentile within {p99} s at {rate} requests a second")
