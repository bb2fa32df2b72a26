"""Latest wins, against a model of it: every input has one outcome, and the newest always gets its turn."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.realtime.session import MOST_INTERRUPTIONS, Change, LatestWins


class Machine(RuleBasedStateMachine):
    """Drives `LatestWins` as a connection does, and keeps the books."""

    @initialize()
    def begin(self) -> None:
        self.wins: LatestWins[int] = LatestWins()
        self.offered = 0
        self.outcomes: dict[int, str] = {}
        self.running: int | None = None
        self.delivering = False
        self.stops_in_a_row = 0

    def apply(self, change: Change[int]) -> None:
        if change.stop:
            assert self.running is not None and not self.delivering
            assert any(item == self.running for item, _ in change.dropped)
            self.running = None
        for item, reason in change.dropped:
            self.settle(item, reason)
        if change.start is not None:
            assert self.running is None, "two at once"
            assert change.start not in self.outcomes
            self.running, self.delivering = change.start, False

    def settle(self, item: int, outcome: str) -> None:
        assert item not in self.outcomes, f"{item} was {self.outcomes[item]}, and now {outcome}"
        self.outcomes[item] = outcome

    @rule(interrupt=st.booleans())
    def offer(self, interrupt: bool) -> None:
        self.offered += 1
        change = self.wins.offer(self.offered, interrupt)
        self.stops_in_a_row += change.stop
        assert not change.stop or interrupt
        assert all(item < self.offered for item, _ in change.dropped), "the newest was dropped"
        self.apply(change)

    @precondition(lambda self: self.running is not None and not self.delivering)
    @rule()
    def deliver(self) -> None:
        self.delivering = True
        self.wins.delivering()

    @precondition(lambda self: self.running is not None)
    @rule()
    def finish(self) -> None:
        """With or without a picture."""
        assert self.running is not None
        self.settle(self.running, "done")
        self.running, self.delivering, self.stops_in_a_row = None, False, 0
        self.apply(self.wins.done())

    @rule()
    def cancel(self) -> None:
        delivering = self.running if self.delivering else None
        self.apply(self.wins.cancel())
        assert self.running == delivering
        if self.running is None:
            self.stops_in_a_row = 0
        assert set(self.outcomes) == set(range(1, self.offered + 1)) - {delivering}

    @invariant()
    def books_are_straight(self) -> None:
        assert self.wins.running == self.running
        assert self.stops_in_a_row <= MOST_INTERRUPTIONS
        open_items = [item for item in range(1, self.offered + 1) if item not in self.outcomes]
        assert open_items == [item for item in (self.wins.running, self.wins.waiting) if item is not None]
        if self.offered and self.outcomes.get(self.offered) not in ("done", "cancelled"):
            assert open_items[-1] == self.offered, "the newest input is never superseded"


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLatestWins = Machine.TestCase


def test_newer_input_takes_the_waiting_place() -> None:
    wins: LatestWins[str] = LatestWins()
    assert wins.offer("a") == Change(start="a")
    assert wins.offer("b") == Change()
    assert wins.offer("c") == Change(dropped=(("b", "superseded"),))
    assert wins.done() == Change(start="c")
    assert wins.done() == Change()


def test_an_interruption_stops_what_runs_and_drops_what_waits() -> None:
    wins: LatestWins[str] = LatestWins()
    wins.offer("a")
    wins.offer("b")
    assert wins.offer("c", True) == Change(True, (("a", "interrupted"), ("b", "superseded")), "c")


def test_a_picture_on_its_way_is_not_interrupted() -> None:
    wins: LatestWins[str] = LatestWins()
    wins.offer("a")
    wins.delivering()
    assert wins.offer("b", True) == Change()
    assert wins.cancel() == Change(dropped=(("b", "cancelled"),))


@pytest.mark.parametrize("rounds", [1, 3])
def test_steady_interruptions_still_let_pictures_through(rounds: int) -> None:
    wins: LatestWins[int] = LatestWins()
    wins.offer(0)
    for _ in range(rounds):
        stops = [wins.offer(number, True).stop for number in range(1, MOST_INTERRUPTIONS + 3)]
        assert stops == [True] * MOST_INTERRUPTIONS + [False] * 2
        assert wins.done().start == MOST_INTERRUPTIONS + 2
