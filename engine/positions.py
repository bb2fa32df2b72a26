"""The denoiser's two-dimensional sine–cosine positional embedding, in numpy."""

import numpy as np
from numpy.typing import NDArray

from engine.manifest import Positions


def sincos_positions(positions: Positions, height: int, width: int) -> NDArray[np.float32]:
    """Embedding [1, height·width, D] of a grid of `height` × `width` patches, rows first.

    The grid is stretched to `base_size` patches a side and divided by the interpolation scale, so that every size
    spans the range of positions seen in training. Half the channels encode the column, half the row; each half is
    sines, then cosines, of D/4 frequencies (Vaswani et al., arXiv 1706.03762). Coordinates are rounded to float32 as
    in the original; the rest is computed in float64.
    """
    quarter = positions.width // 4
    frequencies = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)

    def axis(count: int) -> NDArray[np.float64]:
        places = np.arange(count, dtype=np.float32) / (count / positions.base_size) / positions.interpolation_scale
        angles = np.outer(places.astype(np.float64), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    columns = np.broadcast_to(axis(width)[None], (height, width, 2 * quarter))
    rows = np.broadcast_to(axis(height)[:, None], (height, width, 2 * quarter))
    return np.concatenate([columns, rows], axis=2).reshape(1, height * width, -1).astype(np.float32)
