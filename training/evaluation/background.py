"""Whether a picture's corners have the colour that the caption asked for."""

import numpy as np
from numpy.typing import NDArray

from training.data.colors import delta_e
from training.evaluation.sampler import Pictures


def corner_difference(pictures: Pictures, colors: NDArray[np.floating], patch: int = 6) -> NDArray[np.float64]:
    """The worst corner's CIE76 ΔE from the asked colour, [B].

    Each corner is the mean, in sRGB values, of `patch`×`patch` pixels; pictures [B, H, W, 3], colours [B, 3] in 0..1.
    """
    values = pictures.astype(np.float64) / 255
    near, far = slice(None, patch), slice(-patch, None)
    corners = np.stack([values[:, y, x].mean(axis=(1, 2)) for y in (near, far) for x in (near, far)], axis=1)
    return delta_e(corners, np.asarray(colors)[:, None]).max(axis=1)
