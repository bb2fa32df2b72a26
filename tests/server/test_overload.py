"""Ten times the requests that the server can serve, for a minute. Its figures need a quiet machine."""

import asyncio

import pytest

from benchmarks.client import Answer, pixart
from benchmarks.overload import Outcome, measure, summarise


def test_the_summary_counts_what_it_says() -> None:
    answers = [
        Answer(200, 0.5, None),
        Answer(200, 2.5, None),
        Answer(504, 2.0, None),
        Answer(500, 0.1, None),
        *[Answer(429, 0.001 * i, 1 + i % 3) for i in range(1, 101)],
    ]
    outcomes = [*(Outcome(answer, 1.0) for answer in answers), Outcome(Answer(200, 0.5, None), 2.1)]
    report = summarise(3.0, outcomes, 2.0, 2.0)
    assert (report.accepted, report.refused, report.failed) == (4, 100, 1)
    assert report.kept == 2 / 4 and report.goodput == 0.5 and report.offered == 52.5
    assert report.retry_after == (1, 3)
    assert 0.05 <= report.refusal_median <= 0.051 and 0.099 <= report.refusal_p99 <= 0.1
    refusals = [Outcome(Answer(429, 0.001, after), 0.5) for after in (None, 1)]
    assert summarise(3.0, refusals, 1.0, 1.0).retry_after == (0, 0)


@pytest.mark.slow
def test_ten_times_its_capacity() -> None:
    with pixart([]) as server:
        report = asyncio.run(measure(server.address, factor=10.0, seconds=60.0, deadline=2.0))
    assert report.failed == 0
    assert report.refused > 4 * report.accepted
    assert report.kept >= 0.99, report
    assert report.goodput >= 0.9 * report.capacity, report
    assert report.refusal_p99 < 0.05, report
    assert report.retry_after[0] >= 1, report
