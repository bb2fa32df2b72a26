"""Which training pictures a generated picture is nearest to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def squared_distances(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Squared Euclidean distances of features [A, D] and [B, D] → [A, B]."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0)


def ranks(queries: NDArray[np.floating], gallery: NDArray[np.floating], own: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many gallery pictures are nearer to each query than its own, `gallery[own]`: 0 is a top-1 hit, [B]."""
    squares = squared_distances(queries, gallery)
    mine = np.take_along_axis(squares, np.asarray(own)[:, None], axis=1)
    return (squares < mine).sum(axis=1)


@dataclass(frozen=True)
class NearPair:
    """Two gallery pictures that the features hardly tell apart."""

    first: int
    second: int
    distance: float


def near_pairs(gallery: NDArray[np.floating], below: float) -> list[NearPair]:
    """Pairs of gallery pictures nearer than `below`, nearest first."""
    squares = squared_distances(gallery, gallery)
    first, second = np.nonzero(np.triu(squares < below**2, k=1))
    pairs = [NearPair(int(a), int(b), float(np.sqrt(squares[a, b]))) for a, b in zip(first, second, strict=True)]
    return sorted(pairs, key=lambda pair: pair.distance)
