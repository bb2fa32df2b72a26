"""Soft edges against the formula in float64, and against what an eye expects."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import convolve2d

from models.edges import SoftEdge


def formula(image: NDArray[np.uint8], gain: float) -> NDArray[np.float64]:
    """Blur with a 3×3 binomial filter, Sobel, magnitude / 3 (1 at a black-white step), largest channel; not rounded."""
    binomial = np.outer([1, 2, 1], [1, 2, 1]) / 16
    sobel = np.outer([1, 2, 1], [1, 0, -1])
    magnitudes = []
    for channel in range(3):
        padded = np.pad(image[..., channel] / 255.0, 2, mode="edge")
        blurred = convolve2d(padded, binomial, mode="valid")
        across, down = convolve2d(blurred, sobel, mode="valid"), convolve2d(blurred, sobel.T, mode="valid")
        magnitudes.append(np.hypot(across, down) / 3)
    return np.minimum(255.0, 255.0 * gain * np.max(magnitudes, axis=0))


@pytest.mark.parametrize("gain", [0.5, 2.0])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 50), (1, 1), (2, 7)])
def test_equals_the_formula(rng: np.random.Generator, gain: float, height: int, width: int) -> None:
    # Blocks of one colour under a little noise: strong and weak edges, flat areas.
    coarse = rng.integers(0, 256, (3, -(-height // 8), -(-width // 8), 3))
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    images = np.clip(images + rng.integers(-6, 7, images.shape), 0, 255).astype(np.uint8)
    edges = SoftEdge(gain)(torch.from_numpy(images))
    assert edges.dtype == torch.uint8
    assert edges.shape == images.shape
    for image, ours in zip(images, edges.numpy(), strict=True):
        expected = formula(image, gain)
        assert (ours == ours[..., :1]).all()
        assert np.abs(ours[..., 0] - expected).max() <= 0.5 + 1e-3


def test_a_flat_picture_has_no_edges(rng: np.random.Generator) -> None:
    color = torch.from_numpy(rng.integers(0, 256, (4, 1, 1, 3), dtype=np.uint8))
    assert SoftEdge()(color.expand(4, 20, 30, 3)).max() == 0


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_step_in_one_channel_is_a_white_line_where_it_is(channel: int) -> None:
    image = torch.full((1, 16, 20, 3), 40, dtype=torch.uint8)
    image[:, :, 10:, channel] = 40 + 128
    edges = SoftEdge()(image)[0, :, :, 0]
    assert (edges[:, 9:11] == 255).all()
    assert (edges[:, :8] == 0).all() and (edges[:, 12:] == 0).all()
    assert torch.equal(SoftEdge()(image.transpose(1, 2))[0, :, :, 0], edges.T)
