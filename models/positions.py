"""Two-dimensional sine–cosine positions of a grid of patches."""

import torch
from torch import Tensor


def sincos_positions(height: int, width: int, dim: int, base_size: int, interpolation_scale: float) -> Tensor:
    """Positional embedding of `height` × `width` patches in row-major order, float32 [1, height·width, dim].

    The first half of the channels encodes the column, the second half the row; each half is dim/4
    sines followed by dim/4 cosines of frequencies 10000^(-4k/dim). Coordinates are stretched so that
    every size spans `base_size` (patches per side in training), then divided by `interpolation_scale`.

    Source: Vaswani et al. 2017, §3.5, in two dimensions; PixArt-α (arXiv 2310.00426) for the scaling.
    """
    quarter = dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

    def axis(count: int) -> Tensor:
        # The coordinates are rounded to single precision as in the original, the trigonometry is not.
        place = torch.arange(count, dtype=torch.float32) / (count / base_size) / interpolation_scale
        angle = torch.outer(place.double(), frequencies)
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    columns = axis(width)[None].expand(height, -1, -1)
    rows = axis(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, height * width, dim).float()
