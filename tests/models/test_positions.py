import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from models.positions import sincos_positions


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_equals_diffusers(rng: np.random.Generator, scale: float) -> None:
    for _ in range(20):
        height, width, base = (int(n) for n in rng.integers(1, 40, 3))
        dim = 4 * int(rng.integers(1, 40))
        expected = get_2d_sincos_pos_embed(dim, (height, width), interpolation_scale=scale, base_size=base)
        ours = sincos_positions(height, width, dim, base, scale)
        assert ours.shape == (1, height * width, dim)
        assert ours.dtype == torch.float32
        assert (ours[0] - expected).abs().max() <= 1e-6, (height, width, dim, base)


def test_all_sizes_span_the_same_range() -> None:
    """Twice as many patches a side: every second one is where the trained grid has one."""
    trained = sincos_positions(8, 8, 32, 8, 1.0).view(8, 8, 32)
    larger = sincos_positions(16, 16, 32, 8, 1.0).view(16, 16, 32)
    assert torch.equal(larger[::2, ::2], trained)
