"""Answers as figures: latencies, attainment, goodput; tables and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulation.events import Answer


@dataclass(frozen=True)
class Summary:
    """Latencies in seconds, of requests that got a picture; rates in requests a second.

    `attainment`: the share of all requests that got their picture within their deadline; `goodput`: those a second.
    `steps`: mean steps of a picture.
    """

    p50: float
    p95: float
    p99: float
    mean: float
    throughput: float
    attainment: float
    goodput: float
    steps: float


def summarise(answers: Sequence[Answer]) -> Summary:
    """The figures of a run."""
    done = [answer for answer in answers if answer.steps]
    latencies = np.array([answer.latency for answer in done])
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    start, arrivals = answers[0].ticket.arrived, answers[-1].ticket.arrived - answers[0].ticket.arrived
    in_time = sum(answer.in_time for answer in answers)
    return Summary(
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        mean=float(latencies.mean()),
        throughput=len(done) / (max(answer.ready for answer in done) - start),
        attainment=in_time / len(answers),
        goodput=in_time / arrivals,
        steps=float(np.mean([answer.steps for answer in done])),
    )


def best(baselines: Mapping[str, Summary], metric: str) -> tuple[str, float]:
    """The baseline that is best by this metric, and its value: the most for rates and shares, the least for times."""
    choose = max if metric in ("throughput", "attainment", "goodput") else min
    name = choose(baselines, key=lambda name: getattr(baselines[name], metric))
    return name, getattr(baselines[name], metric)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """For JSON."""
    return {name: asdict(summary) for name, summary in summaries.items()}


def plot(path: Path, title: str, runs: Mapping[str, Sequence[Answer]]) -> bool:
    """Write the latency distributions of some runs as a picture; False: matplotlib is not installed."""
    try:
        pyplot = import_module("matplotlib.pyplot")
    except ModuleNotFoundError:
        return False
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, answers in runs.items():
        # Requests without a picture count as never ready, so curves end below 1.
        latencies = np.sort([answer.latency for answer in answers if answer.steps])
        axes.plot(latencies, np.arange(1, len(latencies) + 1) / len(answers), label=name)
    axes.set(xscale="log", xlabel="latency, s", ylabel="share of requests", title=title)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return True
