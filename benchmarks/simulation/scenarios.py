"""Who is compared with whom, under which load."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from benchmarks.simulation.arrivals import Kind, Times, capacity, poisson, tickets
from benchmarks.simulation.baselines import Batching, Ours, StepLevel
from benchmarks.simulation.curves import Table
from benchmarks.simulation.events import Answer, Policy, simulate
from engine.costs import CostModel

UNBOUNDED = 10**6
WINDOWS = (0.0, 1.0, 4.0)  # in seconds of one step
QUEUES = (8, 16, 32, UNBOUNDED)
OURS, ELASTIC = "ours", "ours, min_steps 2"


@dataclass(frozen=True)
class Scenario:
    """Requests of some kinds at `load` times what the device could do in its best batches.

    `patience`: every request's deadline, in multiples of the seconds that it takes alone (None: there are none).
    """

    name: str
    costs: Table
    kinds: tuple[Kind, ...]
    load: float
    patience: float | None = None
    arrivals: Callable[[float, int], Times] = poisson
    max_batch: int = 8

    @property
    def capacity(self) -> float:
        """Requests a second that the device could do, all in best batches."""
        return capacity(self.kinds, CostModel(self.costs), self.max_batch)

    def run(self, count: int, seed: int = 1) -> dict[str, list[Answer]]:
        """Answers by contender: ours, ours with elastic steps where there are deadlines, and every baseline."""
        kinds = self._with_deadlines()
        runs = {OURS: self._answers(kinds, self._ours(), count, seed)}
        if self.patience is not None:
            elastic = [replace(kind, min_steps=min(2, kind.steps)) for kind in kinds]
            runs[ELASTIC] = self._answers(elastic, self._ours(), count, seed)
        for name, policy in self._baselines().items():
            runs[name] = self._answers(kinds, policy, count, seed)
        return runs

    def _answers(self, kinds: Sequence[Kind], policy: Policy, count: int, seed: int) -> list[Answer]:
        times = self.arrivals(self.load * self.capacity, seed)
        return simulate([policy], tickets(times, kinds, count, seed), CostModel(self.costs), seed=seed)

    def _ours(self) -> Policy:
        return Ours(CostModel(self.costs), self.max_batch, UNBOUNDED)

    def _with_deadlines(self) -> list[Kind]:
        if self.patience is None:
            return list(self.kinds)
        return [replace(kind, timeout=self.patience * alone(kind, self.costs)) for kind in self.kinds]

    def _baselines(self) -> Mapping[str, Policy]:
        """All settings of each: batch sizes and windows, and with deadlines the length of the queue."""
        costs = CostModel(self.costs)
        step = min(costs.seconds("denoise", kind.shape) for kind in self.kinds)
        sizes = [size for size in (2, 3, 4, 8) if size <= self.max_batch]
        # Where requests expire, a short queue matters most; where none do, refusing would only beautify latencies.
        queues, windows = ((UNBOUNDED,), WINDOWS) if self.patience is None else (QUEUES, WINDOWS[:1])
        found: dict[str, Policy] = {}
        for queue in queues:
            suffix = "" if queue == UNBOUNDED else f", queue {queue}"
            found["FIFO" + suffix] = Batching(costs, queue, 1, 0.0)
            for size, window in product(sizes, windows):
                name = f"batches of {size} within {window:g} steps" + suffix
                found[name] = Batching(costs, queue, size, window * step)
            for size in sizes:
                found[f"step-level, {size}" + suffix] = StepLevel(costs, queue, size)
        return found


def alone(kind: Kind, table: Table) -> float:
    """Seconds of one request with the device to itself."""
    costs = CostModel(table)
    seconds = costs.seconds("text", None) + (costs.seconds("control", kind.shape) if kind.control else 0.0)
    return seconds + kind.steps * costs.seconds("denoise", kind.shape) + costs.seconds("decode", kind.shape)


def one_kind(side: int) -> tuple[Kind, ...]:
    """Four steps, no control."""
    return (Kind((side, False)),)


def mixed(*sides: int) -> tuple[Kind, ...]:
    """2, 4 and 8 steps, with and without control, in all sizes; each size half as frequent as the one before."""
    return tuple(
        Kind((side, control), steps, control=control, weight=0.5**index)
        for index, side in enumerate(sides)
        for control in (False, True)
        for steps in (2, 4, 8)
    )


def suite(cpu: Table, a100: Table, h100: Table, side: int) -> list[Scenario]:
    """What `docs/scheduling.md` reports. `side`: of the pictures of the table `cpu`."""
    found = []
    for name, costs, kinds in (
        ("CPU, one shape", cpu, one_kind(side)),
        ("A100, 512", a100, one_kind(512)),
        ("H100, 512", h100, one_kind(512)),
    ):
        found += [Scenario(name, costs, kinds, load) for load in (0.3, 0.8, 0.95)]
    found.append(Scenario("CPU, mixed", cpu, mixed(side), 0.8))
    found.append(Scenario("A100, mixed", a100, mixed(512, 1024), 0.8))
    for patience in (6.0, 12.0):
        found.append(Scenario("CPU, one shape", cpu, one_kind(side), 1.5, patience))
        found.append(Scenario("A100, 512", a100, one_kind(512), 1.5, patience))
        found.append(Scenario("A100, mixed", a100, mixed(512, 1024), 1.5, patience))
    return found
