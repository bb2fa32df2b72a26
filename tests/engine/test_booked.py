"""Refusing what a worker would refuse, without asking it."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from engine.booked import KINDS, LONGEST, Booked
from engine.bundle import Bundle
from engine.costs import CostModel
from engine.request import GenerateRequest, Job, validate
from engine.scheduler import Scheduler
from engine.ticket import Refused, Shape, Stage, Ticket
from server.settings import DEMO_BUNDLE

SECONDS: dict[tuple[Stage, Shape, int], float] = {
    ("text", None, 1): 0.004,
    ("denoise", "small", 1): 0.01,
    ("decode", "small", 1): 0.01,
}
ALONE = 0.05  # seconds of a picture of four steps
TIMEOUT = 2.0


@pytest.fixture(scope="module")
def job() -> Job:
    return validate(GenerateRequest("apple", timeout=TIMEOUT), Bundle.load(DEMO_BUNDLE).manifest)


def test_as_long_as_the_refusal_said(job: Job) -> None:
    booked = Booked()
    assert booked.lateness(job, 100.0) == 0.0
    booked.note(job, 100.0, 0.5)
    assert booked.lateness(job, 100.1) == pytest.approx(0.4)
    assert booked.lateness(job, 100.5) == 0.0


def test_a_wrong_prediction_does_not_last(job: Job) -> None:
    booked = Booked()
    booked.note(job, 100.0, 1e6)
    assert booked.lateness(job, 100.0 + 0.9 * LONGEST) > 0.0
    assert booked.lateness(job, 100.0 + 1.1 * LONGEST) == 0.0


def test_only_its_own_kind(job: Job) -> None:
    booked = Booked()
    booked.note(job, 100.0, 0.75)
    assert booked.lateness(replace(job, prompt="frog", seed=9, priority="batch"), 100.0) == 0.75
    for other in (
        replace(job, steps=2, min_steps=2),
        replace(job, min_steps=1),
        replace(job, previews=1),
        replace(job, timeout=2.5),
        replace(job, timeout=None),
    ):
        assert booked.lateness(other, 100.0) == 0.0
    booked.clear()
    assert booked.lateness(job, 100.0) == 0.0


def test_no_number_of_kinds_makes_it_grow(job: Job) -> None:
    booked = Booked()
    for index in range(10 * KINDS):
        booked.note(replace(job, timeout=1.0 + index), 0.0, 0.5)
    assert len(booked._until) == KINDS
    assert booked.lateness(replace(job, timeout=10.0 * KINDS), 0.0) > 0.0


def drive(job: Job, load: float, seconds: float) -> tuple[Counter[str], float]:
    """What becomes of requests that come at random moments, when calls take as long as predicted.

    Also returns the most by which a request was refused too early, in seconds.
    """
    scheduler, booked, numbers = Scheduler(CostModel(SECONDS), 4, 100), Booked(), random.Random(3)
    fates: Counter[str] = Counter()
    now, arrival, worst, count = 0.0, 0.0, 0.0, 0
    while now < seconds:
        while arrival <= now:
            count += 1
            deadline = arrival + TIMEOUT
            ticket = Ticket(str(count), "small", 4, 4, arrival, count, deadline=deadline)
            late = booked.lateness(job, arrival)
            try:
                scheduler.admit(ticket, now)
            except Refused as refused:
                fates["refused at once" if late else "refused"] += 1
                if not late:
                    booked.note(job, arrival, refused.retry_after)
            else:
                fates["wrongly refused" if late else "accepted"] += 1
                if late:
                    scheduler.cancel(ticket.id, now)
                    worst = max(worst, late)
            arrival += numbers.expovariate(load / ALONE)
        work = scheduler.next(now)
        if work is None:
            now = arrival
            continue
        now += scheduler.costs.seconds(work.stage, work.shape, len(work.ids))
        fates["made"] += len(scheduler.finish(work, None, now))
    return fates, worst


@pytest.mark.parametrize("load", [2.0, 10.0])
def test_it_refuses_what_the_scheduler_would(job: Job, load: float) -> None:
    fates, worst = drive(job, load, 20.0)
    refused = fates["refused"] + fates["refused at once"] + fates["wrongly refused"]
    assert fates["refused at once"] > 0.3 * refused
    # The share that is kept free shrinks a little with every picture that is in time, and with it what is refused.
    assert fates["wrongly refused"] <= 0.1 * refused and worst < 0.005
    # The device is never idle for it: all of the time, but for the pictures that were begun and not finished.
    assert fates["made"] * ALONE > 0.9 * 20.0
