"""The scheduler on small cases that can be followed by hand."""

import pytest

from engine.costs import CostModel
from engine.plan import MARGIN
from engine.scheduler import Scheduler
from engine.ticket import Preparation, Refused, Ticket, Work

SHAPE = ("64x64", False)
COSTS = {("text", None, 1): 1.0, ("control", SHAPE, 1): 2.0, ("denoise", SHAPE, 1): 10.0, ("decode", SHAPE, 1): 4.0}


def ticket(id: str, **changes) -> Ticket:
    fields = {"shape": SHAPE, "steps": 2, "min_steps": 2, "arrived": 0.0, "key": id} | changes
    return Ticket(id, **fields)


def run(scheduler: Scheduler, now: float = 0.0) -> tuple[list[Work], dict[str, float]]:
    """Everything it does until it is idle, each call taking what the cost model says; and when pictures are ready."""
    works, ready = [], {}
    while (work := scheduler.next(now)) is not None:
        works.append(work)
        now += scheduler.costs.seconds(work.stage, work.shape, len(work.ids))
        for finished in scheduler.finish(work, None, now):
            ready.update(dict.fromkeys(finished.audience, now))
    return works, ready


def test_one_request_goes_through_its_stages_in_order():
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    scheduler.admit(ticket("a", previews=frozenset({1}), encode=Preparation(text=True, control=True)), 0.0)
    assert (scheduler.queued, scheduler.running) == (1, 0)
    works, ready = run(scheduler)
    assert [work.stage for work in works] == ["text", "control", "denoise", "preview", "denoise", "decode"]
    assert ready == {"a": 1.0 + 2.0 + 10.0 + 4.0 + 10.0 + 4.0}
    assert (scheduler.queued, scheduler.running) == (0, 0)


def test_identical_requests_are_computed_once():
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    for id in "abc":
        scheduler.admit(ticket(id, key="same"), 0.0)
    works, ready = run(scheduler)
    assert {id for work in works for id in work.ids} == {"a"}
    assert ready.keys() == {"a", "b", "c"}


def test_the_first_of_identical_requests_can_leave():
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    scheduler.admit(ticket("a", key="same"), 0.0)
    scheduler.admit(ticket("b", key="same"), 0.0)
    assert scheduler.cancel("a", 0.0)
    assert scheduler.wanted("a")
    assert run(scheduler)[1].keys() == {"b"}
    assert not scheduler.wanted("a")


def test_refusals_say_why_and_for_how_long():
    scheduler = Scheduler(CostModel(COSTS), 4, 2)
    scheduler.admit(ticket("a"), 0.0)
    with pytest.raises(Refused) as refused:
        scheduler.admit(ticket("b", deadline=24.0), 0.0)
    assert refused.value.reason == "deadline" and refused.value.retry_after > 0.0
    scheduler.admit(ticket("c"), 0.0)
    with pytest.raises(Refused) as refused:
        scheduler.admit(ticket("d"), 0.0)
    assert refused.value.reason == "queue_full" and refused.value.retry_after == pytest.approx(25.0 * (1.0 + MARGIN))
