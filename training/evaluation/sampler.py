"""What the measures ask of a model: captions in, pictures out."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]
"""uint8 [B, H, W, 3], sRGB."""


class Sampler(Protocol):
    """A text-to-image model with its weights.

    `control`, if given, is uint8 edge maps [B, H, W, 3] as the model's edge detector draws them.
    The same caption and seed give the same picture, whatever else is in the batch.
    """

    def __call__(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        control: Pictures | None = None,
        strength: float = 1.0,
    ) -> Pictures:
        """One picture a caption, uint8 [B, H, W, 3]."""


def runs(count: int, size: int) -> Iterator[slice]:
    """Slices that cut 0..count-1 into runs of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def sample(
    sampler: Sampler,
    captions: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    *,
    batch: int,
    control: Pictures | None = None,
    strength: float = 1.0,
) -> Pictures:
    """All of `captions` in batches of at most `batch` → uint8 [B, H, W, 3]."""
    parts = [
        sampler(captions[run], seeds[run], steps, None if control is None else control[run], strength)
        for run in runs(len(captions), batch)
    ]
    return np.concatenate(parts)
