"""Centre lines of edge maps."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def thin(mask: Mask) -> Mask:
    """Centre lines of a binary picture [H, W], one pixel wide and connected as before (Zhang and Suen, 1984)."""
    mask = mask.copy()
    while True:
        before = mask
        for corner in (0, 1):
            mask = mask & ~_removable(mask, corner)
        if np.array_equal(mask, before):
            return mask


def _removable(mask: Mask, corner: int) -> Mask:
    """Border pixels of one sub-iteration: south-east ones and north-west corners first, then the opposite."""
    padded = np.pad(mask, 1).astype(np.int8)
    height, width = mask.shape
    # Neighbours clockwise from the north: P2..P9 of the paper.
    around = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    ring = np.stack([padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in around])
    north, east, south, west = ring[0], ring[2], ring[4], ring[6]
    neighbours = ring.sum(axis=0)
    runs = ((ring == 0) & (np.roll(ring, -1, axis=0) == 1)).sum(axis=0)
    if corner == 0:
        exposed = (north * east * south == 0) & (east * south * west == 0)
    else:
        exposed = (north * east * west == 0) & (north * south * west == 0)
    return (neighbours >= 2) & (neighbours <= 6) & (runs == 1) & exposed


def edge_lines(soft: NDArray[np.uint8], threshold: float) -> Mask:
    """Centre lines of a soft edge map [H, W], where it is at least `threshold` of 0..255.

    Thin lines keep the score honest: the detector's lines are some 4 pixels wide, and thick lines
    overlap by chance alone.
    """
    return thin(soft >= threshold)
