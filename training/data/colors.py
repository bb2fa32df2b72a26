"""The named background colours, and how far two colours are apart to the eye."""

import numpy as np
from numpy.typing import NDArray

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 27),
    "gray": (140, 140, 145),
    "red": (214, 48, 49),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 70),
    "green": (56, 160, 80),
    "teal": (40, 170, 175),
    "blue": (52, 105, 215),
    "purple": (125, 70, 185),
    "pink": (245, 150, 190),
    "brown": (120, 78, 50),
}


def srgb_to_lab(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """sRGB in 0..1, shape [..., 3], to CIE L*a*b* under D65 (IEC 61966-2-1, CIE 15)."""
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness = 116 * f[..., 1] - 16
    return np.stack([lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def delta_e(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """CIE76 colour difference of two sRGB colours in 0..1, shape [..., 3] → [...]."""
    return np.linalg.norm(srgb_to_lab(first) - srgb_to_lab(second), axis=-1)
