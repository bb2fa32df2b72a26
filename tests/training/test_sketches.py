"""Sketches hold a subject's outline, and of its inner edges those that are strong and long."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from training.data.lines import thin
from training.data.sketches import sketch

SIZE = 96
BOX = (20, 24, 76, 70)


def opacity() -> NDArray[np.uint8]:
    image = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(image).ellipse(BOX, fill=255)
    return np.asarray(image)


def edges(strength: int = 255, length: int = 30) -> NDArray[np.uint8]:
    """The ellipse's outline as a detector sees it, and a line within."""
    image = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(image)
    pen.ellipse(BOX, outline=255, width=4)
    pen.line((30, 46, 30 + length, 46), fill=strength, width=4)
    return np.asarray(image)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def around(lines: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """All within so many pixels of the lines."""
    near: NDArray[np.bool_] = ndimage.distance_transform_edt(~lines) <= pixels
    return near


def test_the_outline_is_drawn_near_its_place_in_one_width(rng: np.random.Generator) -> None:
    inside = opacity() >= 128
    outline = inside & ~ndimage.binary_erosion(inside)
    for _ in range(10):
        drawn = sketch(edges(0), opacity(), rng)
        assert drawn.shape == (SIZE, SIZE)
        assert drawn.dtype == np.uint8
        assert drawn.max() == 255
        # Errors of 1.5 pixels (standard deviation) at the corners of a grid stay below 9 pixels in both directions.
        assert around(drawn > 0, 9)[outline].all()
        assert around(outline, 9 + 3)[drawn > 0].all()
        width = drawn.sum() / 255 / thin(drawn >= 128).sum()
        assert 1.0 < width < 7.0


@pytest.mark.parametrize(("strength", "length"), [(60, 30), (255, 1)])
def test_weak_and_short_edges_are_left_out(rng: np.random.Generator, strength: int, length: int) -> None:
    seed = int(rng.integers(2**32))
    plain = sketch(edges(0), opacity(), np.random.default_rng(seed))
    np.testing.assert_array_equal(sketch(edges(strength, length), opacity(), np.random.default_rng(seed)), plain)


def test_how_much_of_a_strong_edge_is_drawn_is_chance_alone(rng: np.random.Generator) -> None:
    seeds = rng.integers(2**32, size=20)
    drawn = [sketch(edges(160), opacity(), np.random.default_rng(seed))[46, 45] > 0 for seed in seeds]
    again = [sketch(edges(160), opacity(), np.random.default_rng(seed))[46, 45] > 0 for seed in seeds]
    assert drawn == again
    assert 0 < sum(drawn) < 20


def test_nothing_to_draw_is_black_and_a_border_is_no_outline(rng: np.random.Generator) -> None:
    nothing = np.zeros((SIZE, SIZE), np.uint8)
    assert sketch(nothing, nothing, rng).max() == 0
    assert sketch(nothing, np.full_like(nothing, 255), rng).max() == 0
    # A picture that fills its frame is sketched by its edges.
    assert sketch(edges(), np.full_like(nothing, 255), rng).max() == 255
