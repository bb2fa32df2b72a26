"""Whether a picture's edges lie where the control image asked for them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from models.edges import SoftEdge
from training.data.lines import Mask, edge_lines
from training.evaluation.sampler import Pictures, runs


@dataclass(frozen=True)
class EdgeMatch:
    """How well edges agree; all three in 0..1."""

    precision: float
    """Share of the picture's edge pixels that the control asked for."""
    recall: float
    """Share of the control's edge pixels that the picture has."""
    f_score: float
    """Harmonic mean of both."""


def soft_edges(pictures: Pictures) -> Pictures:
    """The demo model's edge maps of pictures, both uint8 [B, H, W, 3]."""
    detector = SoftEdge()
    parts = [detector(torch.from_numpy(pictures[run])).numpy() for run in runs(len(pictures), 32)]
    return np.concatenate(parts)


def match_edges(edges: Mask, control: Mask, tolerance: float = 2.0) -> EdgeMatch:
    """Compare two binary edge maps [H, W]; pixels within `tolerance` (Euclidean) of each other agree.

    Two empty maps agree fully; an empty one and another not at all.
    """
    if not edges.any() or not control.any():
        equal = float(not edges.any() and not control.any())
        return EdgeMatch(equal, equal, equal)
    precision = float((ndimage.distance_transform_edt(~control)[edges] <= tolerance).mean())
    recall = float((ndimage.distance_transform_edt(~edges)[control] <= tolerance).mean())
    total = precision + recall
    return EdgeMatch(precision, recall, 2 * precision * recall / total if total else 0.0)


def control_score(
    edges: NDArray[np.uint8], control: NDArray[np.uint8], *, threshold: float = 64.0, tolerance: float = 2.0
) -> EdgeMatch:
    """Mean over pictures of their edges' agreement with the control's; soft edge maps [B, H, W, 3]."""
    matches = [
        match_edges(edge_lines(a[..., 0], threshold), edge_lines(b[..., 0], threshold), tolerance)
        for a, b in zip(edges, control, strict=True)
    ]
    return EdgeMatch(
        *(float(np.mean([getattr(m, name) for m in matches])) for name in ("precision", "recall", "f_score"))
    )
