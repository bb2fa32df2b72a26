"""Known changes to real pictures: what a measure should forgive, and what it should not."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Distortion = Callable[[Tensor, torch.Generator], Tensor]
"""Pictures [B, 3, H, W] in 0..1 on white, and where chance comes from → the same shape."""


def blur(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur by `sigma` pixels of pictures [B, C, H, W]."""
    reach = int(3 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-offsets.square() / (2 * sigma * sigma))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = F.pad(pictures.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(flat, kernel), kernel.mT)[:, 0].view_as(pictures)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) * 2 - 1


def move(
    pictures: Tensor,
    generator: torch.Generator,
    *,
    shift: float = 0.0,
    zoom: float = 0.0,
    turn: float = 0.0,
    warp: float = 0.0,
    warp_size: float = 12.0,
) -> Tensor:
    """Random shift (up to pixels), zoom (up to a share), turn (up to radians), and a smooth warp (pixels RMS)."""
    count, _, height, width = pictures.shape
    angle = _uniform(generator, count) * turn
    scale = 1 / (1 + _uniform(generator, count) * zoom)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) * scale
    theta[:, 1, 0] = torch.sin(angle) * scale
    theta[:, 0, 1] = -theta[:, 1, 0]
    theta[:, :, 2] = _uniform(generator, count, 2) * shift * 2 / width
    grid = F.affine_grid(theta, [count, 3, height, width], align_corners=False)
    if warp:
        field = blur(torch.randn(count, 2, height, width, generator=generator), warp_size)
        field = field / field.std(dim=(1, 2, 3), keepdim=True) * (warp * 2 / width)
        grid = grid + field.permute(0, 2, 3, 1)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def subject_mask(pictures: Tensor) -> Tensor:
    """Where a picture on white is not white, [B, 1, H, W]."""
    return (pictures < 0.97).any(dim=1, keepdim=True).float()


def tint(pictures: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Make each of the subject's channels brighter or darker by up to a share `strength`."""
    factor = 1 + _uniform(generator, len(pictures), 3, 1, 1) * strength
    return pictures * (1 + subject_mask(pictures) * (factor - 1))


def noise(pictures: Tensor, generator: torch.Generator, deviation: float) -> Tensor:
    """Add white noise."""
    return pictures + torch.randn(pictures.shape, generator=generator) * deviation


def _others(pictures: Tensor) -> Tensor:
    return pictures.roll(1, dims=0)


def _flat(pictures: Tensor) -> Tensor:
    mask = subject_mask(pictures)
    mean = (pictures * mask).sum(dim=(2, 3), keepdim=True) / mask.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return mask * mean + (1 - mask)


def _redrawn(pictures: Tensor, generator: torch.Generator, amount: float) -> Tensor:
    moved = move(
        pictures,
        generator,
        shift=3 * amount,
        zoom=0.08 * amount,
        turn=0.08 * amount,
        warp=3 * amount,
        warp_size=14,
    )
    return blur(noise(tint(moved, generator, 0.15 * amount), generator, 0.04 * amount), 2 * amount)


FORGIVABLE: dict[str, Distortion] = {
    "none": lambda p, g: p,
    "blur, σ 2 px": lambda p, g: blur(p, 2),
    "blur, σ 4 px": lambda p, g: blur(p, 4),
    "noise, σ 0.05": lambda p, g: noise(p, g, 0.05),
    "shift ≤ 4 px": lambda p, g: move(p, g, shift=4),
    "shift ≤ 8 px": lambda p, g: move(p, g, shift=8),
    "zoom ≤ 12 %, turn ≤ 8°": lambda p, g: move(p, g, zoom=0.12, turn=0.14),
    "warp 3 px": lambda p, g: move(p, g, warp=3),
    "warp 5 px": lambda p, g: move(p, g, warp=5, warp_size=16),
    "tint ≤ 25 %": lambda p, g: tint(p, g, 0.25),
    "all together, mild": lambda p, g: _redrawn(p, g, 1.0),
    "all together, strong": lambda p, g: _redrawn(p, g, 1.5),
}
"""The same thing, drawn a little differently: the subject's own label should still be found."""

UNFORGIVABLE: dict[str, Distortion] = {
    "half another picture": lambda p, g: (p + _others(p)) / 2,
    "coloured blob (blur, σ 14 px)": lambda p, g: blur(p, 14),
    "flat silhouette in the mean colour": lambda p, g: _flat(p),
    "grey, blurred by σ 6 px": lambda p, g: blur(p.mean(dim=1, keepdim=True).expand_as(p), 6),
    "another subject's picture": lambda p, g: _others(p),
}
"""No longer recognisable as the subject, or only partly: these should miss often."""
