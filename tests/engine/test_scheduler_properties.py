"""What holds of the scheduler whatever it is asked."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.costs import CostModel
from engine.flight import PATIENCE, YIELD, Flight
from engine.plan import MARGIN
from engine.scheduler import Scheduler
from engine.ticket import Preparation, Refused, Shape, Stage, Ticket, Work

SHAPES = ("small", "large")
TIMEOUTS = st.floats(1.0, 80.0)
MAYBE = st.none() | TIMEOUTS
cancellations = st.dictionaries(st.sampled_from([f"t{i}" for i in range(12)]), st.integers(0, 30))
# The same examples every time, and no judgement of the machine's speed.
quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def cost_models(draw) -> CostModel:
    """From batches for nothing to batches that gain nothing."""
    gain = draw(st.floats(0.0, 1.0))
    costs: dict[tuple[Stage, Shape, int], float] = {("text", None, 1): 0.5, ("preview", "small", 1): 0.2}
    for shape, scale in (("small", 1.0), ("large", 3.0)):
        costs["control", shape, 1] = scale
        for batch in (1, 2, 4, 8):
            costs["denoise", shape, batch] = scale * (gain + (1.0 - gain) * batch)
            costs["decode", shape, batch] = 2.0 * scale * batch
    return CostModel(costs, lambda shape: 3.0 if shape == "large" else 1.0)


@st.composite
def tickets(draw, most: int = 12, deadlines=MAYBE) -> list[Ticket]:
    """By arrival; some of them identical."""
    now, found = 0.0, []
    for index in range(draw(st.integers(1, most))):
        now += draw(st.sampled_from([0.0, 0.5, 3.0, 20.0]))
        key = draw(st.integers(0, 2 * most))
        steps = 1 + key % 5
        timeout = draw(deadlines)
        found.append(
            Ticket(
                f"t{index}",
                SHAPES[key % 2],
                steps,
                draw(st.integers(1, steps)),
                now,
                key,
                frozenset(draw(st.sets(st.integers(1, 4), max_size=2))),
                None if timeout is None else now + timeout,
                draw(st.sampled_from(["interactive", "batch"])),
                Preparation(draw(st.booleans()), draw(st.booleans())),
            )
        )
    return found


@dataclass
class Log:
    """What a run did. `cancelled` and `works` carry the number of works handed out before."""

    works: list[Work] = field(default_factory=list)
    ready: dict[str, tuple[float, int]] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)  # steps by computation
    cancelled: dict[str, int] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    joined: set[str] = field(default_factory=set)  # tickets computed under another's id


def drive(scheduler: Scheduler, arriving: list[Ticket], cancel: dict[str, int] | None = None) -> Log:
    """Run to the end, each call taking what the cost model says; `cancel`: tickets by number of works before it."""
    log, waiting, now = Log(), list(arriving), 0.0
    cancel = cancel or {}
    while True:
        while waiting and waiting[0].arrived <= now:
            ticket = waiting.pop(0)
            try:
                scheduler.admit(ticket, now)
            except Refused as refused:
                log.refused[ticket.id] = refused
            else:
                if not scheduler.wanted(ticket.id):
                    log.joined.add(ticket.id)
        log.dropped.update(scheduler.drop_hopeless(now))
        for id, count in cancel.items():
            if count <= len(log.works) and id not in log.cancelled and scheduler.cancel(id, now):
                log.cancelled[id] = len(log.works)
        work = scheduler.next(now)
        if work is None:
            if not waiting:
                assert (scheduler.queued, scheduler.running) == (0, 0)
                return log
            now = max(now, waiting[0].arrived)
            continue
        log.works.append(work)
        end = now + scheduler.costs.seconds(work.stage, work.shape, len(work.ids))
        while waiting and waiting[0].arrived < end:  # while the call runs
            ticket = waiting.pop(0)
            try:
                scheduler.admit(ticket, ticket.arrived)
            except Refused as refused:
                log.refused[ticket.id] = refused
            else:
                if not scheduler.wanted(ticket.id):
                    log.joined.add(ticket.id)
        now = end
        for finished in scheduler.finish(work, None, now):
            assert finished.audience
            log.computed[finished.id] = finished.steps
            for id in finished.audience:
                assert id not in log.ready
                log.ready[id] = (now, finished.steps)


@quick
@given(cost_models(), tickets(), st.integers(1, 8), st.integers(1, 12), cancellations)
def test_nothing_is_lost_or_run_twice(costs, arriving, max_batch, capacity, cancel):
    log = drive(Scheduler(costs, max_batch, capacity), arriving, cancel)
    for ticket in arriving:
        fates = (log.ready, log.cancelled, log.refused, log.dropped)
        assert sum(ticket.id in fate for fate in fates) == 1
    by_id = {ticket.id: ticket for ticket in arriving}
    for work in log.works:
        assert len(set(work.ids)) == len(work.ids)
        assert 1 <= len(work.ids) <= (1 if work.stage in ("text", "control") else max_batch)
        assert all(by_id[id].shape == work.shape for id in work.ids)
    for id, steps in log.computed.items():
        ticket, stages = by_id[id], [work.stage for work in log.works if id in work.ids]
        encodings = [stage for stage in ("text", "control") if getattr(ticket.encode, stage)]
        assert stages[: len(encodings)] == encodings
        assert stages[-1] == "decode"
        rest = stages[len(encodings) : -1]
        assert rest.count("denoise") == steps and set(rest) <= {"denoise", "preview"}
        assert ticket.min_steps <= steps <= ticket.steps
    for id, (_, steps) in log.ready.items():
        assert steps >= by_id[id].min_steps


@quick
@given(cost_models(), tickets(deadlines=st.none()))
def test_previews_come_after_their_steps(costs, arriving):
    arriving = list({ticket.key: ticket for ticket in arriving}.values())  # alone, nobody adds to its previews
    log = drive(Scheduler(costs, 4, 12), arriving)
    for ticket in arriving:
        stages = [work.stage for work in log.works if ticket.id in work.ids and work.stage in ("denoise", "preview")]
        expected = []
        for step in range(1, ticket.steps + 1):
            expected += ["denoise", "preview"] if step in ticket.previews and step < ticket.steps else ["denoise"]
        assert stages == expected


@quick
@given(cost_models(), tickets(), cancellations)
def test_what_is_cancelled_stops_within_a_call(costs, arriving, cancel):
    keys = Counter(ticket.key for ticket in arriving)
    log = drive(Scheduler(costs, 4, 12), arriving, cancel)
    for ticket in arriving:
        if ticket.id in log.cancelled and keys[ticket.key] == 1:
            assert all(ticket.id not in work.ids for work in log.works[log.cancelled[ticket.id] :])


@quick
@given(cost_models(), tickets(), st.integers(1, 8), st.integers(1, 12))
def test_refusals_have_a_reason(costs, arriving, max_batch, capacity):
    scheduler = Scheduler(costs, max_batch, capacity)
    held: list[Ticket] = []
    for ticket in arriving:
        now = 0.0
        deadline = None if ticket.deadline is None else ticket.deadline - ticket.arrived
        ticket = Ticket(ticket.id, ticket.shape, ticket.steps, ticket.min_steps, now, ticket.id, deadline=deadline)
        alone = [Flight.of(one, costs).alone for one in (*held, ticket)]
        try:
            scheduler.admit(ticket, now)
        except Refused as refused:
            if refused.reason == "queue_full":
                assert len(held) == capacity
            else:
                # Even one by one, all together would not be ready before the first deadline.
                first = min(one.deadline for one in (*held, ticket) if one.deadline is not None)
                assert sum(alone) * (1.0 + MARGIN) > first
                assert refused.retry_after > 0.0
        else:
            held.append(ticket)
            assert len(held) <= capacity


@quick
@given(cost_models(), tickets(most=1, deadlines=TIMEOUTS))
def test_an_idle_device_takes_all_that_can_be_done(costs, arriving):
    (ticket,) = arriving
    scheduler = Scheduler(costs, 4, 1)
    flight = Flight.of(ticket, costs)
    flight.join(ticket)
    seconds = flight.seconds_alone(costs, cut=True) * (1.0 + MARGIN)
    log = drive(scheduler, arriving)
    assert (ticket.id in log.ready) == (ticket.arrived + seconds <= ticket.deadline)


@quick
@given(cost_models(), tickets(deadlines=TIMEOUTS))
def test_promises_are_kept(costs, arriving):
    """Without batches the prediction is exact, so what was taken is ready in time."""
    log = drive(Scheduler(costs, 1, 12), arriving)
    assert not log.dropped
    for ticket in arriving:
        if ticket.id in log.ready:
            assert log.ready[ticket.id][0] <= ticket.deadline


@settings(quick, max_examples=8)
@given(cost_models(), st.sampled_from([None, 30.0]), st.integers(1, 4))
def test_nothing_starves(costs, timeout, at_once):
    """Short urgent requests without end, and a long one that has no deadline."""
    scheduler, now, count = Scheduler(costs, 4, 1 + at_once), 0.0, 0
    long = Ticket("long", "large", 8, 8, 0.0, "long")
    scheduler.admit(long, now)
    alone = Flight.of(long, costs).alone
    # Ready when it is the most urgent, or at the latest a few of its own times after that.
    latest = YIELD * PATIENCE["interactive"] * alone + 10.0 * alone
    while now < latest:
        while scheduler.queued + scheduler.running < 1 + at_once:
            count += 1
            deadline = None if timeout is None else now + timeout
            short = Ticket(f"s{count}", "small", 2, 2, now, count, deadline=deadline, encode=Preparation(False))
            try:
                scheduler.admit(short, now)
            except Refused:
                break
        work = scheduler.next(now)
        assert work is not None
        now += scheduler.costs.seconds(work.stage, work.shape, len(work.ids))
        if any(finished.id == "long" for finished in scheduler.finish(work, None, now)):
            return
        scheduler.drop_hopeless(now)
    raise AssertionError(f"not ready after {now} s")
