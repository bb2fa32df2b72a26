from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from training.data.lines import Mask, edge_lines, thin
from training.evaluation.control import control_score, match_edges


def brute_force(edges: Mask, control: Mask, tolerance: float) -> tuple[float, float, float]:
    """Every pixel against every other."""
    a, b = np.argwhere(edges), np.argwhere(control)
    distance = np.sqrt(np.square(a[:, None] - b[None]).sum(-1))
    precision = (distance.min(1) <= tolerance).mean()
    recall = (distance.min(0) <= tolerance).mean()
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)


def column(x: int, side: int = 16) -> Mask:
    mask = np.zeros((side, side), bool)
    mask[:, x] = True
    return mask


@pytest.mark.parametrize("density", [0.005, 0.05, 0.5])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0, 5.0])
def test_equals_brute_force(density: float, tolerance: float) -> None:
    rng = np.random.default_rng()
    edges, control = rng.random((2, 23, 31)) < density
    edges[0, 0] = control[-1, -1] = True
    match = match_edges(edges, control, tolerance)
    assert (match.precision, match.recall, match.f_score) == pytest.approx(brute_force(edges, control, tolerance))


def test_shift_within_and_beyond_the_tolerance() -> None:
    assert match_edges(column(5), column(7)).f_score == 1.0
    assert match_edges(column(5), column(8)).f_score == 0.0


def test_missing_and_surplus_edges() -> None:
    both = column(3) | column(12)
    missing = match_edges(column(3), both)
    assert (missing.precision, missing.recall) == (1.0, 0.5)
    assert missing.f_score == pytest.approx(2 / 3)
    surplus = match_edges(both, column(3))
    assert (surplus.precision, surplus.recall) == (0.5, 1.0)


def test_diagonal_distance_is_euclidean() -> None:
    edges, control = np.zeros((2, 8, 8), bool)
    edges[2, 2] = control[4, 4] = True
    assert match_edges(edges, control, 2.0).f_score == 0.0
    assert match_edges(edges, control, 3.0).f_score == 1.0


def test_empty_maps() -> None:
    empty = np.zeros((8, 8), bool)
    assert match_edges(empty, empty).f_score == 1.0
    assert match_edges(empty, column(2, 8)).f_score == 0.0
    assert match_edges(column(2, 8), empty).f_score == 0.0


def literal_thinning(mask: Mask) -> Mask:
    """Zhang and Suen's algorithm pixel by pixel, as in the paper."""
    padded = [[0] * (mask.shape[1] + 2) for _ in range(mask.shape[0] + 2)]
    for y, x in np.argwhere(mask):
        padded[y + 1][x + 1] = 1
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            gone = []
            for y in range(1, mask.shape[0] + 1):
                for x in range(1, mask.shape[1] + 1):
                    p2, p3, p4 = padded[y - 1][x], padded[y - 1][x + 1], padded[y][x + 1]
                    p5, p6, p7 = padded[y + 1][x + 1], padded[y + 1][x], padded[y + 1][x - 1]
                    p8, p9 = padded[y][x - 1], padded[y - 1][x - 1]
                    cycle = [p2, p3, p4, p5, p6, p7, p8, p9, p2]
                    transitions = sum(a == 0 and b == 1 for a, b in pairwise(cycle))
                    sides = (p2 * p4 * p6, p4 * p6 * p8) if first else (p2 * p4 * p8, p2 * p6 * p8)
                    if padded[y][x] and 2 <= sum(cycle[:8]) <= 6 and transitions == 1 and not any(sides):
                        gone.append((y, x))
            for y, x in gone:
                padded[y][x] = 0
            changed = changed or bool(gone)
    return np.array(padded, bool)[1:-1, 1:-1]


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_thinning_equals_the_paper_transcribed(size: float) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng().standard_normal((40, 50)), size)
    np.testing.assert_array_equal(thin(noise > 0), literal_thinning(noise > 0))


@pytest.mark.parametrize("turn", range(4))
def test_a_thick_soft_line_thins_to_its_middle(turn: int) -> None:
    profile = np.array([0, 60, 200, 255, 200, 60, 0] + [0] * 13)
    lines = edge_lines(np.rot90(np.tile(profile, (20, 1)), turn).astype(np.uint8), 64)
    inner = np.zeros((20, 20), bool)
    inner[2:-2, 2:-2] = True
    np.testing.assert_array_equal(lines & inner, np.rot90(column(3, 20), turn) & inner)


def test_faint_lines_are_below_the_threshold() -> None:
    assert not edge_lines(np.full((9, 9), 40, np.uint8), 64).any()


def test_score_is_the_mean_over_pictures() -> None:
    line = np.zeros((2, 16, 16, 3), np.uint8)
    line[:, :, 5] = 255
    control = line.copy()
    control[1] = np.roll(control[1], 7, axis=1)
    assert control_score(line, line).f_score == 1.0
    assert control_score(line, control).f_score == pytest.approx(0.5)
