"""Simulate the scheduler beside others, on stage costs of this CPU and of modelled GPUs.

    python -m benchmarks.simulate [--requests 2000] [--json out.json] [--plots folder]
    python -m benchmarks.simulate --curve a100 --side 512 --load 0.8 [--traffic bursty | --traffic log.jsonl]
    python -m benchmarks.simulate --curve a100 --side 1024 --rate 20 --p99 2       how many GPUs?
    python -m benchmarks.simulate --measure models/zoo/emoji                       stage costs of this CPU

The scheduler is `engine.scheduler.Scheduler` itself. A log has one JSON object a line, with the time of arrival `at` in
seconds. See `docs/scheduling.md`.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.simulation import curves, fleet, gpu, measure
from benchmarks.simulation.arrivals import TRAFFIC, Times, recorded
from benchmarks.simulation.curves import Table
from benchmarks.simulation.events import Answer
from benchmarks.simulation.report import Summary, best, plain, plot, summarise, table
from benchmarks.simulation.scenarios import ELASTIC, OURS, Scenario, mixed, one_kind, suite

CPU = Path(__file__).parent / "simulation" / "cpu.json"
MAX_BATCH = 8
FAMILIES = ("FIFO", "batches of", "step-level")


def costs(name: str) -> Table:
    """A modelled GPU's, or those of a file; `cpu` is the file that `--measure` writes."""
    if name in gpu.GPUS:
        return gpu.costs(gpu.GPUS[name], (512, 1024), MAX_BATCH)
    return curves.load(CPU if name == "cpu" else Path(name))


def side_of(costs: Table) -> int:
    """The pictures' side in a table with one size."""
    return next(shape[0] for stage, shape, _ in costs if stage == "denoise" and isinstance(shape, tuple))


def latency_rows(scenario: Scenario, results: Mapping[str, Summary]) -> list[list[str]]:
    """One row for each metric: ours, and its ratio to each baseline's with the settings that are best by it."""
    rows = []
    for metric in ("p50", "p99", "throughput"):
        own = getattr(results[OURS], metric)
        row = [scenario.name, f"{100 * scenario.load:.0f} %", metric]
        row.append(f"{own:.2f}/s" if metric == "throughput" else f"{1000 * own:.0f} ms")
        for family in FAMILIES:
            name, value = best({name: one for name, one in results.items() if name.startswith(family)}, metric)
            settings = name.removeprefix(family).removeprefix(",").strip()
            row.append(f"{own / value:.2f}" + (f" ({settings})" if settings else ""))
        rows.append(row)
    return rows


def goodput_row(scenario: Scenario, results: Mapping[str, Summary]) -> list[str]:
    """Answers within their deadline, as shares of the capacity at full steps."""
    name, value = best(_baselines(results), "goodput")
    elastic, capacity = results[ELASTIC], scenario.capacity
    return [
        scenario.name,
        f"{100 * scenario.load:.0f} %",
        f"{scenario.patience:g} × alone",
        f"{results[OURS].goodput / capacity:.2f}",
        f"{elastic.goodput / capacity:.2f} ({elastic.steps:.1f} steps)",
        f"{value / capacity:.2f} ({name})",
        f"{results['FIFO'].goodput / capacity:.2f}",
    ]


def _baselines(results: Mapping[str, Summary]) -> dict[str, Summary]:
    return {name: summary for name, summary in results.items() if name not in (OURS, ELASTIC)}


def run(scenarios: Sequence[Scenario], count: int, plots: Path | None) -> list[dict[str, Any]]:
    """Run them, print their tables, and return everything for JSON."""
    found: list[dict[str, Any]] = []
    latencies: list[list[str]] = []
    goodputs: list[list[str]] = []
    for scenario in scenarios:
        runs = scenario.run(count)
        results = {name: summarise(answers) for name, answers in runs.items()}
        if scenario.patience is None:
            latencies += latency_rows(scenario, results)
        else:
            goodputs.append(goodput_row(scenario, results))
        found.append({"scenario": scenario.name, "load": scenario.load, "patience": scenario.patience} | plain(results))
        if plots is not None:
            _plot(plots, scenario, runs, results)
    if latencies:
        print(table(["", "load", "metric", "ours", "× FIFO", "× batches of", "× step-level, at most"], latencies), "\n")
    if goodputs:
        head = ["", "load", "deadline", "ours", "ours, min_steps 2", "best baseline", "FIFO, unbounded"]
        print(table(head, goodputs))
    return found


def _plot(
    folder: Path, scenario: Scenario, runs: Mapping[str, Sequence[Answer]], results: Mapping[str, Summary]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    baselines = _baselines(results)
    shown = {OURS, "FIFO", best(baselines, "p50")[0], best(baselines, "p99")[0], best(baselines, "goodput")[0]}
    title = f"{scenario.name}, {100 * scenario.load:.0f} % load"
    name = title.replace(", ", "-").replace(" %", "").replace(" ", "-").lower()
    if not plot(folder / f"{name}.png", title, {name: answers for name, answers in runs.items() if name in shown}):
        print("no plots: matplotlib is not installed")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Simulate the scheduler beside others.")
    parser.add_argument("--requests", type=int, default=2000, help="in each scenario")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--plots", type=Path, help="write latency distributions into this folder")
    parser.add_argument("--curve", default="cpu", help="cpu, a100, h100, or a file that --measure wrote")
    parser.add_argument("--side", type=int, help="pixels; default: the curve's first size")
    parser.add_argument("--mixed", action="store_true", help="2, 4 and 8 steps, with and without control")
    parser.add_argument("--load", type=float, help="one scenario: times the capacity")
    parser.add_argument("--patience", type=float, help="deadlines, in multiples of the time that a request takes alone")
    parser.add_argument("--traffic", default="poisson", help="poisson, bursty, or a log of arrivals")
    parser.add_argument("--rate", type=float, help="how many devices for so many requests a second?")
    parser.add_argument("--p99", type=float, default=2.0, help="with --rate: seconds")
    parser.add_argument("--measure", type=Path, metavar="BUNDLE", help="measure the stage costs of a bundle here")
    parser.add_argument("--rounds", type=int, default=20, help="with --measure")
    parser.add_argument("--threads", type=int, default=0, help="with --measure; 0: all")
    options = parser.parse_args()
    if options.measure:
        about = machine.describe("openvino") | {
            "bundle": options.measure.name,
            "threads": str(options.threads or "all"),
        }
        curves.save(CPU, measure.costs(options.measure, options.rounds, options.threads), about)
        print(f"wrote {CPU}")
        return
    chosen = costs(options.curve)
    side = options.side or side_of(chosen)
    kinds = mixed(side) if options.mixed else one_kind(side)
    if options.rate:
        number, summary = fleet.devices(chosen, kinds, options.rate, options.p99, options.requests)
        print(f"{number} devices: p50 {summary.p50:.2f} s, p99 {summary.p99:.2f} s")
        return
    if options.load:
        arrivals: Callable[[float, int], Times] = TRAFFIC.get(options.traffic) or partial(
            _recorded, Path(options.traffic)
        )
        name = f"{options.curve}, {side}, {options.traffic}"
        scenarios = [Scenario(name, chosen, kinds, options.load, options.patience, arrivals)]
    else:
        cpu = costs("cpu")
        scenarios = suite(cpu, costs("a100"), costs("h100"), side_of(cpu))
    found = run(scenarios, options.requests, options.plots)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _recorded(path: Path, rate: float, seed: int) -> Times:
    return recorded(path, rate)


if __name__ == "__main__":
    main()
