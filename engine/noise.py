"""Gaussian noise that depends on a request's seed and step alone, never on its batch, worker or history.

What is drawn, so that it can be reproduced anywhere: for (seed, step) take the 64-bit words w₀ w₁ w₂ … of
Philox4x64-10 (Salmon et al., SC 2011) with key (seed, 0) and the 256-bit counter starting at step·2¹⁹² (numpy's
`Philox`; as ever there, the counter is incremented before the first block of four words). The first ⌈n/2⌉ words give
u = ((w >> 11) + 1)·2⁻⁵³ in (0, 1], the next ⌈n/2⌉ give v = (w >> 11)·2⁻⁵³ in [0, 1). Box–Muller makes of each pair
√(−2 ln u)·cos 2πv (all of these come first) and √(−2 ln u)·sin 2πv, in float64, rounded to float32, the first n of
which fill the array in C order. numpy promises that a bit generator's words never change; it does not promise this
of `standard_normal`, hence Box–Muller here.

Step 0 is the starting latent; step k ≥ 1 is the noise added after the k-th denoising step.
"""

import math

import numpy as np
from numpy.typing import NDArray

MAX_SEED = 2**63 - 1


def normal(seed: int, step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise of `shape` for this seed (0..2⁶³−1) and step (≥ 0)."""
    count = math.prod(shape)
    half = (count + 1) // 2
    words = np.random.Philox(key=seed, counter=step << 192).random_raw(2 * half) >> np.uint64(11)
    radius = np.sqrt(-2.0 * np.log((words[:half] + np.uint64(1)) * 2.0**-53))
    angle = words[half:] * (2.0 * np.pi * 2.0**-53)
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return values[:count].astype(np.float32).reshape(shape)
