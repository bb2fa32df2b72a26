"""Line drawings of pictures, as a person makes them: few lines, all equally strong and wide, none quite in place."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.data.lines import edge_lines

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
APART = 3.0  # pixels; an edge nearer than this to the outline is the outline, seen by the detector
GRID = 5  # points each way at which a hand's error is drawn; between them it changes smoothly


def sketch(edges: NDArray[np.uint8], opacity: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """White lines on black, uint8 [H, W]: the subject's outline, and as many of its inner edges as chance says.

    Args:
        edges: the soft edge map of the picture on its background [H, W].
        opacity: where the subject is, 0 to 255 [H, W].
        rng: how much is drawn, how wide, and how far from its place.
    """
    inside = opacity >= 128
    outline = inside & ~ndimage.binary_erosion(inside, border_value=1)
    inner = edge_lines(edges, rng.uniform(64, 240))
    if outline.any():
        inner &= _distance(outline) > APART
    lines = outline | _long(inner, rng.uniform(6, 30))
    if not lines.any():
        return np.zeros_like(edges)
    width, error = rng.uniform(2.0, 5.0), rng.uniform(0.0, 1.5)
    ink = np.clip((width + 1) / 2 - _displaced(_distance(lines), error, rng), 0, 1)
    return (255 * ink).astype(np.uint8)


def _distance(lines: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of every pixel to the nearest line, in pixels."""
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~lines)
    return distance


def _long(lines: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    """Only the lines of at least so many pixels."""
    labels, _ = ndimage.label(lines, EIGHT_NEIGHBOURS)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    long: NDArray[np.bool_] = sizes[labels] >= least
    return long


def _displaced(values: NDArray[np.float64], error: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """The same picture with every point some `error` pixels (standard deviation) from where it was."""
    height, width = values.shape
    place = np.stack(np.meshgrid(np.linspace(0, GRID - 1, height), np.linspace(0, GRID - 1, width), indexing="ij"))
    moves = [ndimage.map_coordinates(rng.normal(0, error, (GRID, GRID)), place, order=1) for _ in range(2)]
    where = np.indices(values.shape) + np.stack(moves)
    displaced: NDArray[np.float64] = ndimage.map_coordinates(values, where, order=1, mode="nearest")
    return displaced
