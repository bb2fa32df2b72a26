"""The simulation, against formulas where there are any; and what it says of the scheduler, in small."""

import json
import sys
from itertools import islice, pairwise
from math import inf
from pathlib import Path
from statistics import mean, pstdev

import pytest

from benchmarks import simulate as command
from benchmarks.simulation import curves, fleet, gpu
from benchmarks.simulation.arrivals import Kind, bursty, capacity, poisson, recorded, tickets
from benchmarks.simulation.baselines import Batching, Ours, StepLevel
from benchmarks.simulation.events import Answer, simulate
from benchmarks.simulation.report import best, summarise
from benchmarks.simulation.scenarios import ELASTIC, OURS, Scenario, one_kind
from engine.costs import CostModel

SHAPE = (512, False)
TABLE: curves.Table = {("text", None, 1): 1.0, ("denoise", SHAPE, 1): 2.0, ("decode", SHAPE, 1): 3.0}
A100 = gpu.costs(gpu.GPUS["a100"], (512,), 8)


def test_first_in_first_out_follows_lindleys_recursion():
    costs = CostModel(TABLE)
    arriving = tickets(poisson(0.07, 3), [Kind(SHAPE, 2), Kind(SHAPE, 4)], 200, 3)
    answers = simulate([Batching(costs, 1000, 1, 0.0)], arriving, costs, jitter=0.0)
    free = 0.0
    for ticket, answer in zip(arriving, answers, strict=True):
        free = max(free, ticket.arrived) + 1.0 + 2.0 * ticket.steps + 3.0
        assert answer.ready == pytest.approx(free) and answer.steps == ticket.steps


def test_a_batch_waits_for_its_window_or_until_it_is_full():
    costs = CostModel(TABLE | {("denoise", SHAPE, 2): 2.5})
    arriving = tickets(iter([0.0, 1.0, 2.0]), [Kind(SHAPE, 1)], 3, 0)
    answers = simulate([Batching(costs, 10, 2, 20.0)], arriving, costs, jitter=0.0)
    # The first two start at 1: two texts, a step of two, one decoding of two. The third starts at 2 + 20.
    assert [answer.ready for answer in answers] == pytest.approx([1.0 + 2.0 + 2.5 + 6.0] * 2 + [22.0 + 1.0 + 2.0 + 3.0])


def test_step_level_lets_newcomers_join():
    costs = CostModel({key: value for key, value in TABLE.items()} | {("denoise", SHAPE, 2): 2.0})
    arriving = tickets(iter([0.0, 1.5]), [Kind(SHAPE, 4)], 2, 0)
    answers = simulate([StepLevel(costs, 10, 4)], arriving, costs, jitter=0.0)
    # Text 1, step 3, the second's text 4, three steps together 10, decoding 13; then its last step and decoding.
    assert [answer.ready for answer in answers] == pytest.approx([13.0, 18.0])


def test_expired_requests_are_not_begun():
    costs = CostModel(TABLE)
    arriving = tickets(iter([0.0, 0.1]), [Kind(SHAPE, 4, timeout=11.0)], 2, 0)
    answers = simulate([Batching(costs, 10, 1, 0.0)], arriving, costs, jitter=0.0)
    assert [answer.ready for answer in answers] == [12.0, inf]
    assert [answer.in_time for answer in answers] == [False, False]


@pytest.mark.parametrize("source", [poisson, bursty])
def test_arrivals_come_at_their_rate(source):
    times = list(islice(source(4.0, 5), 20_000))
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) >= 0.0 and mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert (pstdev(gaps) / mean(gaps) > 1.2) == (source is bursty)


def test_recorded_arrivals_keep_their_pattern(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"at": at}) + "\n" for at in (10.0, 10.5, 14.0)))
    times = list(islice(recorded(log, 1.0), 6))
    assert times == pytest.approx([0.0, 0.25, 2.0, 3.0, 3.25, 5.0])
    log.write_text('{"at": 1.0}\n')
    with pytest.raises(ValueError, match="no arrivals"):
        next(recorded(log, 1.0))


def test_capacity_counts_the_best_batches():
    costs = CostModel(TABLE | {("denoise", SHAPE, 2): 2.0})
    assert capacity([Kind(SHAPE, 4)], costs, 2) == pytest.approx(1.0 / (1.0 + 4 * 1.0 + 3.0))


def test_a_modelled_gpu_is_within_its_peak():
    for card in gpu.GPUS.values():
        for side in (512, 1024):
            table = gpu.costs(card, (side,), 8)
            tokens = (side // 16) ** 2
            flops = 28 * (28 * 1152**2 * tokens + 4 * tokens**2 * 1152)  # products of weights, attention
            for batch in range(1, 9):
                seconds = table["denoise", (side, False), batch]
                assert 0.2 * card.peak < batch * flops / seconds < card.peak * gpu.EFFICIENCY
                assert table["denoise", (side, True), batch] > seconds


def test_overload_is_shed_early_and_steps_are_saved():
    scenario = Scenario("", A100, one_kind(512), 1.5, patience=6.0)
    results = {name: summarise(answers) for name, answers in scenario.run(400).items()}
    assert results[OURS].goodput > 0.85 * scenario.capacity
    assert results[ELASTIC].goodput > 1.1 * results[OURS].goodput
    others = {name: summary for name, summary in results.items() if name not in (OURS, ELASTIC)}
    assert results[OURS].goodput > best(others, "goodput")[1]
    assert results["FIFO"].goodput < 0.5 * scenario.capacity


def test_near_capacity_no_throughput_is_given_away():
    scenario = Scenario("", A100, one_kind(512), 0.95)
    results = {name: summarise(answers) for name, answers in scenario.run(600).items()}
    ours = results.pop(OURS)
    assert ours.p50 < 1.1 * best(results, "p50")[1]
    assert ours.throughput > 0.98 * best(results, "throughput")[1]


def test_more_devices_for_more_requests():
    few, summary = fleet.devices(A100, one_kind(512), 10.0, 0.6, count=150)
    many, _ = fleet.devices(A100, one_kind(512), 60.0, 0.6, count=150)
    assert 1 <= few < many and summary.p99 <= 0.6
    with pytest.raises(ValueError, match="no number"):
        fleet.devices(A100, one_kind(512), 60.0, 0.01, count=50)


def test_devices_share_requests():
    costs = CostModel(TABLE)
    arriving = tickets(iter([0.0, 0.0]), [Kind(SHAPE, 4)], 2, 0)
    answers: list[Answer] = simulate([Ours(CostModel(TABLE), 1, 8) for _ in range(2)], arriving, costs, jitter=0.0)
    assert [answer.ready for answer in answers] == pytest.approx([12.0, 12.0])


def test_the_command_prints_tables_and_writes_figures(tmp_path: Path, monkeypatch, capsys):
    table, output = tmp_path / "curve.json", tmp_path / "out.json"
    curves.save(table, A100, {"made": "for a test"})
    assert curves.load(table) == pytest.approx(A100, rel=1e-3)
    options = ["--curve", str(table), "--load", "0.8", "--requests", "50", "--json", str(output)]
    monkeypatch.setattr(sys, "argv", ["simulate", *options])
    command.main()
    assert "80 %" in capsys.readouterr().out
    (result,) = json.loads(output.read_text())
    assert result["ours"]["p50"] > 0.0
