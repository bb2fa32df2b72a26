"""The cost model: between, beyond and without measurements, and corrected by what is seen."""

import pytest

from engine.costs import FLOOR, OUTLIER, RATE, SINKING, CostModel
from engine.ticket import Shape, Stage

MEASURED: dict[tuple[Stage, Shape, int], float] = {
    ("text", None, 1): 1.0,
    ("denoise", 64, 1): 10.0,
    ("denoise", 64, 4): 16.0,
    ("decode", 64, 2): 6.0,
}


def area(shape: Shape) -> float:
    assert isinstance(shape, int)
    return float(shape * shape)


def test_between_and_beyond_what_was_measured():
    costs = CostModel(MEASURED)
    assert [costs.seconds("denoise", 64, batch) for batch in (1, 2, 3, 4, 6)] == [10.0, 12.0, 14.0, 16.0, 20.0]
    assert [costs.seconds("decode", 64, batch) for batch in (1, 2, 4)] == [3.0, 6.0, 12.0]
    falling = CostModel(MEASURED | {("denoise", 64, 4): 9.0})
    assert falling.seconds("denoise", 64, 8) == 9.0


def test_other_shapes_are_estimated_by_their_area():
    costs = CostModel(MEASURED, area)
    assert costs.seconds("denoise", 128, 1) == 40.0
    assert costs.seconds("text", 128) == 1.0
    assert costs.seconds("preview", 64) == 3.0


def test_what_is_seen_corrects_the_model():
    costs = CostModel(MEASURED)
    costs.observe("denoise", 64, 2, 24.0)
    assert costs.seconds("denoise", 64, 2) == pytest.approx(12.0 * (1.0 + RATE))
    assert 10.0 < costs.seconds("denoise", 64, 1) < 10.0 * (1.0 + RATE)
    for _ in range(200):
        costs.observe("denoise", 64, 2, 30.0)
    assert costs.seconds("denoise", 64, 2) == pytest.approx(30.0, rel=0.01)


def test_one_hiccup_counts_little():
    costs = CostModel(MEASURED)
    costs.observe("denoise", 64, 1, 1e6)
    assert costs.seconds("denoise", 64, 1) <= 10.0 * (1.0 + RATE * OUTLIER)


def test_doubts_lead_back_to_what_was_measured_and_not_to_nothing():
    costs = CostModel(MEASURED, area)
    costs.seconds("denoise", 128)  # estimated
    for _ in range(50):
        costs.observe("denoise", 64, 1, 100.0)
        costs.observe("decode", 64, 1, 1.0)
    costs.seconds("denoise", 32)  # estimated while all is slow
    slow = [costs.seconds("denoise", 64, batch) for batch in (1, 4)]
    costs.doubt()
    assert [costs.seconds("denoise", 64, batch) / before for batch, before in zip((1, 4), slow, strict=True)] == [
        pytest.approx(SINKING)
    ] * 2
    best = costs.at_best()
    for _ in range(200):
        costs.doubt()
    for shape, batch in ((64, 1), (64, 4), (32, 1), (128, 2)):
        assert costs.seconds("denoise", shape, batch) == pytest.approx(best.seconds("denoise", shape, batch))
    assert costs.seconds("denoise", 32) == pytest.approx(FLOOR * 2.5)
    assert costs.seconds("denoise", 64) == pytest.approx(FLOOR * 10.0)
    assert costs.seconds("denoise", 128) == pytest.approx(FLOOR * 40.0)
    assert costs.seconds("text", None) == pytest.approx(FLOOR * 1.0)
    assert costs.seconds("decode", 64) == pytest.approx(1.0, rel=0.05), "less than the floor by observation"


@pytest.mark.parametrize(
    "measured", [{("denoise", 64, 1): 1.0, ("decode", 64, 1): 1.0}, MEASURED | {("decode", 64, 1): 0.0}]
)
def test_measurements_that_cannot_be_used(measured):
    with pytest.raises(ValueError, match="measured"):
        CostModel(measured)
