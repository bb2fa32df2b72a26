"""The scheduler on small cases that can be followed by hand."""

from typing import Any

import pytest

from engine.costs import CostModel
from engine.plan import MARGIN
from engine.scheduler import Scheduler
from engine.ticket import Preparation, Refused, Shape, Stage, Ticket, Work

SHAPE = ("64x64", False)
COSTS: dict[tuple[Stage, Shape, int], float] = {
    ("text", None, 1): 1.0,
    ("control", SHAPE, 1): 2.0,
    ("denoise", SHAPE, 1): 10.0,
    ("decode", SHAPE, 1): 4.0,
}
FLAT = COSTS | {("denoise", SHAPE, 4): 10.0}  # a batch costs no more than one


def ticket(id: str, **changes: Any) -> Ticket:
    fields: dict[str, Any] = {"shape": SHAPE, "steps": 2, "min_steps": 2, "arrived": 0.0, "key": id} | changes
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


@pytest.mark.parametrize("slowness", [2.0, 3.0, 5.0])
def test_a_slow_phase_does_not_keep_deadlines_out_for_ever(slowness: float):
    """One request at a time, whose deadline is met easily, but not while all calls take longer."""
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    now, in_time = 0.0, []
    for number in range(300):
        slow = slowness if 20 <= number < 60 else 1.0
        one = ticket(str(number), arrived=now, deadline=now + 24.0 * (0.9 * slowness), encode=Preparation(text=False))
        try:
            scheduler.admit(one, now)
        except Refused:
            now += 10.0
            in_time.append(False)
            continue
        ready = 0.0
        while (work := scheduler.next(now)) is not None:
            seconds = slow * COSTS[work.stage, work.shape, 1]
            now += seconds
            if scheduler.finish(work, seconds, now):
                ready = now
            scheduler.drop_hopeless(now)
        in_time.append(0.0 < ready <= one.deadline)  # type: ignore[operator]
    assert all(in_time[:20])
    assert not all(in_time[20:60]), "or this tests nothing"
    assert all(in_time[-50:])


@pytest.mark.parametrize(("share", "most"), [(0.3, 0.0), (0.8, 0.15)])
def test_deadlines_that_cannot_be_kept_are_seldom_tried(share: float, most: float):
    """Share of the time that a request takes alone; most of them that may be begun in vain."""
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    now, begun = 0.0, 0
    for number in range(400):
        now = 24.0 * number
        try:
            one = ticket(str(number), arrived=now, deadline=now + share * 24.0, encode=Preparation(text=False))
            scheduler.admit(one, now)
        except Refused:
            continue
        begun += 1
        while (work := scheduler.next(now)) is not None:
            seconds = COSTS[work.stage, work.shape, 1]
            now += seconds
            scheduler.finish(work, seconds, now)
            scheduler.drop_hopeless(now)
    assert begun <= most * 400
    # What had the device to itself says nothing about those that have company: 53.0 is a tenth more than two need.
    for id in "ab":
        scheduler.admit(ticket(id, arrived=now, deadline=now + 53.0, encode=Preparation(text=False)), now)


def test_a_batch_grows_where_that_pays_and_only_there():
    for costs, largest in ((COSTS, 1), (FLAT, 4)):
        scheduler = Scheduler(CostModel(costs), 4, 8)
        for id in "abcdef":
            scheduler.admit(ticket(id), 0.0)
        assert max(len(work.ids) for work in run(scheduler)[0] if work.stage == "denoise") == largest


def test_without_a_gain_requests_are_finished_in_order():
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    for id in "abc":
        scheduler.admit(ticket(id), 0.0)
    assert run(scheduler)[1] == {"a": 25.0, "b": 50.0, "c": 75.0}


def test_newcomers_join_at_the_next_step():
    scheduler = Scheduler(CostModel(FLAT), 4, 8)
    scheduler.admit(ticket("a", steps=3, encode=Preparation(text=False)), 0.0)
    work = scheduler.next(0.0)
    assert work is not None
    scheduler.admit(ticket("b", encode=Preparation(text=False)), 5.0)
    scheduler.finish(work, None, 10.0)
    together = scheduler.next(10.0)
    assert together is not None and set(together.ids) == {"a", "b"}


def test_short_requests_overtake_and_urgent_ones_overtake_them():
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    scheduler.admit(ticket("long", steps=8), 0.0)
    scheduler.admit(ticket("short", steps=1, min_steps=1), 0.0)
    assert list(run(scheduler)[1]) == ["short", "long"]
    scheduler.admit(ticket("long", steps=8, deadline=90.0), 0.0)
    scheduler.admit(ticket("short", steps=1, min_steps=1), 0.0)
    assert list(run(scheduler)[1]) == ["long", "short"]


def test_interactive_requests_go_before_others():
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    scheduler.admit(ticket("a", priority="batch"), 0.0)
    scheduler.admit(ticket("b"), 0.0)
    assert list(run(scheduler)[1]) == ["b", "a"]


def test_steps_are_cut_to_keep_a_neighbours_deadline():
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    scheduler.admit(ticket("a", steps=4, min_steps=1, deadline=60.0), 0.0)
    scheduler.admit(ticket("b", steps=2, deadline=50.0), 0.0)  # 45 + 25 alone in a row
    finished = {}
    now = 0.0
    while (work := scheduler.next(now)) is not None:
        now += scheduler.costs.seconds(work.stage, work.shape, len(work.ids))
        for done in scheduler.finish(work, None, now):
            finished[done.id] = (now, done.steps)
    assert finished["b"][0] <= 50.0 and finished["b"][1] == 2
    assert finished["a"][0] <= 60.0 and 1 <= finished["a"][1] < 4


def test_hopeless_requests_are_dropped():
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    scheduler.admit(ticket("a", deadline=30.0), 0.0)
    assert scheduler.drop_hopeless(4.0) == ()
    assert scheduler.drop_hopeless(6.0) == ("a",)
    assert scheduler.next(6.0) is None


def test_an_id_is_used_once_at_a_time():
    scheduler = Scheduler(CostModel(COSTS), 4, 8)
    scheduler.admit(ticket("a"), 0.0)
    work = scheduler.next(0.0)
    assert work is not None
    scheduler.cancel("a", 0.0)
    with pytest.raises(ValueError, match="in use"):  # its call still runs
        scheduler.admit(ticket("a"), 0.0)
    assert scheduler.finish(work, None, 1.0) == ()
    scheduler.admit(ticket("a"), 1.0)
    assert run(scheduler, 1.0)[1].keys() == {"a"}


def test_who_joins_others_must_not_delay_a_neighbour():
    scheduler = Scheduler(CostModel(COSTS), 1, 8)
    scheduler.admit(ticket("a", key="same", deadline=40.0), 0.0)
    scheduler.admit(ticket("c", deadline=55.0), 0.0)  # 50 seconds, the margin and the headroom
    with pytest.raises(Refused):  # one preview more, and c is late
        scheduler.admit(ticket("b", key="same", deadline=99.0, previews=frozenset({1})), 0.0)
    scheduler.admit(ticket("b", key="same", deadline=99.0), 0.0)
    works, ready = run(scheduler)
    assert "preview" not in [work.stage for work in works]
    assert ready == {"a": 25.0, "b": 25.0, "c": 50.0}
