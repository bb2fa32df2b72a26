"""The share that admission leaves free, steered by deadlines kept and missed."""

import numpy as np
import pytest

from engine.headroom import MISSES, MOST, START, STEP, Headroom


def test_up_when_one_is_missed_and_slowly_down_again() -> None:
    headroom = Headroom()
    assert headroom.share == START
    headroom.missed()
    assert headroom.share == pytest.approx(START + STEP)
    for _ in range(round(1 / MISSES)):
        headroom.kept()
    assert headroom.share == pytest.approx(START)


def test_it_stays_within_its_bounds() -> None:
    headroom = Headroom()
    for _ in range(100):
        headroom.missed()
    assert headroom.share == MOST
    for _ in range(100_000):
        headroom.kept()
    assert headroom.share == 0.0


def test_it_settles_where_the_wanted_share_is_missed() -> None:
    """Whatever is late by more than the share misses; here errors are spread evenly up to 20 %."""
    random, headroom, missed, count = np.random.default_rng(1), Headroom(), 0, 40_000
    for error in random.uniform(0.0, 0.2, count):
        if error > headroom.share:
            headroom.missed()
            missed += 1
        else:
            headroom.kept()
    assert 0.15 < headroom.share < 0.3
    assert missed / count == pytest.approx(MISSES, rel=0.3)
