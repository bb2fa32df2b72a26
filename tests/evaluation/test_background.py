import numpy as np
import pytest
from numpy.typing import ArrayLike

from training.data.colors import BACKGROUNDS, delta_e, srgb_to_lab
from training.evaluation.background import corner_difference
from training.evaluation.sampler import Pictures


def flat(*colors: ArrayLike, side: int = 32) -> Pictures:
    return np.tile(np.array(colors, np.uint8)[:, None, None], (1, side, side, 1))


def test_known_lab_values() -> None:
    """White, and the sRGB primaries as tabulated for D65."""
    lab = srgb_to_lab(np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float))
    expected = np.array([[100, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]])
    np.testing.assert_allclose(lab, expected, atol=0.02)


def test_the_asked_color_is_no_distance_away() -> None:
    colors = np.array(list(BACKGROUNDS.values()))
    np.testing.assert_allclose(corner_difference(flat(*colors), colors / 255), 0, atol=1e-9)


def test_named_colors_are_further_apart_than_the_limit() -> None:
    """Otherwise a picture on exactly another named background could pass."""
    colors = np.array(list(BACKGROUNDS.values())) / 255
    apart = delta_e(colors[:, None], colors[None])
    assert apart[~np.eye(len(colors), dtype=bool)].min() > 1.5 * 15


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_one_wrong_corner_decides(y: int, x: int) -> None:
    picture = flat((255, 255, 255))
    rows = slice(None, 6) if y == 0 else slice(-6, None)
    columns = slice(None, 6) if x == 0 else slice(-6, None)
    picture[0, rows, columns] = (0, 0, 0)
    assert corner_difference(picture, np.ones((1, 3)))[0] == pytest.approx(100, abs=0.01)


def test_the_middle_does_not_count() -> None:
    picture = flat((255, 255, 255))
    picture[0, 6:-6] = 0
    picture[0, :, 6:-6] = 0
    assert corner_difference(picture, np.ones((1, 3)))[0] == pytest.approx(0, abs=1e-9)


def test_a_patch_is_judged_by_its_mean() -> None:
    picture = flat((255, 255, 255))
    picture[0, :, ::2] = 200
    expected = delta_e(np.full(3, 227.5 / 255), np.ones(3))
    assert corner_difference(picture, np.ones((1, 3)))[0] == pytest.approx(float(expected))
