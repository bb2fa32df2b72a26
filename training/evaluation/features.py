"""Features of pictures: what a distance between pictures, or between sets of them, is measured in."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.data.colors import srgb_to_lab
from training.evaluation.sampler import Pictures, runs


class FeatureExtractor(Protocol):
    """Pictures uint8 [B, H, W, 3] → features [B, D]."""

    def __call__(self, pictures: Pictures) -> NDArray[np.floating]:
        """Features of one batch."""


def extract(extractor: FeatureExtractor, pictures: Pictures, batch: int = 32) -> NDArray[np.floating]:
    """Features of any number of pictures, a batch at a time → [B, D]."""
    return np.concatenate([extractor(pictures[run]) for run in runs(len(pictures), batch)])


def area_mean(pictures: NDArray[np.floating], side: int) -> NDArray[np.floating]:
    """Shrink [B, H, W, C] to [B, side, side, C] by the mean over equal cells.

    Raises:
        ValueError: the pictures' sides are no multiple of `side`.
    """
    count, height, width, channels = pictures.shape
    if height % side or width % side:
        raise ValueError(f"pictures of {height}×{width} do not divide into {side}×{side} cells")
    return pictures.reshape(count, side, height // side, side, width // side, channels).mean(axis=(2, 4))


class PictureFeatures:
    """Where which colour is and which way edges run: the stated distance of the retrieval measure.

    Two halves of equal weight, neither learnt, so that no model is judged by itself:

    * the picture as 16×16 colours in CIE L*a*b*, where distance is what the eye sees;
    * a histogram of 8 edge orientations in each of 16×16 cells (Dalal and Triggs, 2005), from the
      strongest gradient among L*, a* and b* at 64×64; a gradient g counts as g / (g + `EDGE_GAIN`)
      so that faint inner lines matter beside outlines, and neighbouring cells overlap so that a
      shift by a few pixels costs little. Square roots make it a Hellinger distance.

    Colour alone would accept a blurred blob of the right colours, edges alone a shape in any colour.
    `COLOR_SCALE` and `EDGE_SCALE` are the root mean square distances between two emoji on white, so
    that a typical pair is √2 apart. `python -m training.evaluation.ceiling` measures how far the
    distance can be trusted.
    """

    CELLS = 16
    SIDE = 64
    ORIENTATIONS = 8
    EDGE_GAIN = 10.0
    COLOR_SCALE = 750.0
    EDGE_SCALE = 6.5

    def __call__(self, pictures: Pictures) -> NDArray[np.float32]:
        """[B, H, W, 3] with H and W multiples of 64 → [B, 16·16·(3 + 8)]."""
        lab = srgb_to_lab(area_mean(pictures.astype(np.float32) / 255, self.SIDE)).astype(np.float32)
        count = len(pictures)
        colors = area_mean(lab, self.CELLS).reshape(count, -1)
        edges = self._orientations(lab).reshape(count, -1)
        return np.concatenate([colors / self.COLOR_SCALE, edges / self.EDGE_SCALE], axis=1).astype(np.float32)

    def _orientations(self, lab: NDArray[np.float32]) -> NDArray[np.float32]:
        """[B, 64, 64, 3] → roots of histograms [B, 16, 16, 8]."""
        smooth = ndimage.gaussian_filter(lab, 1.0, axes=(1, 2), mode="nearest")
        dy, dx = np.gradient(smooth, axis=(1, 2))
        magnitude = np.hypot(dx, dy)
        strongest = magnitude.argmax(axis=-1)[..., None]
        dy, dx, magnitude = (np.take_along_axis(a, strongest, -1)[..., 0] for a in (dy, dx, magnitude))
        votes = magnitude / (magnitude + self.EDGE_GAIN)
        turn = np.arctan2(dy, dx) / np.pi % 1.0 * self.ORIENTATIONS
        histogram = np.zeros((*votes.shape, self.ORIENTATIONS), np.float32)
        for orientation in range(self.ORIENTATIONS):
            away = np.abs(turn - orientation)
            away = np.minimum(away, self.ORIENTATIONS - away)
            histogram[..., orientation] = votes * np.clip(1 - away, 0, None)
        overlap = self.SIDE / self.CELLS / 2
        histogram = ndimage.gaussian_filter(histogram, overlap, axes=(1, 2), mode="constant")
        return np.sqrt(area_mean(histogram, self.CELLS))
