"""Stage costs of PixArt-δ at full size on NVIDIA GPUs, modelled by roofline with wave quantisation.

A matrix product [m, k] × [k, n] is cut into tiles of 128 × 128 that are dealt to the streaming multiprocessors (SMs) in
waves, so it takes ⌈tiles / SMs⌉ times as long as one tile (NVIDIA, "Matrix Multiplication Background User's Guide",
§ wave quantization), and never less than its bytes take. Convolutions count as products of pixels and 9 × channels.
That is what makes a batch pay, or not: at 512 × 512 pixels one sample leaves SMs idle in the narrow products.

Peaks and bandwidths are those of NVIDIA's data sheets (A100 80 GB SXM: 312 TFLOP/s in bf16, 2.04 TB/s, 108 SMs; H100
SXM: 989 TFLOP/s, 3.35 TB/s, 132 SMs). A busy SM is taken to reach half its peak, and bytes to flow at 80 % of theirs:
one A100 then takes less for 1024 × 1024 in four steps than the 0.51 s that PixArt-δ's authors measured with PyTorch,
see `docs/scheduling.md`. Each kernel costs 2.5 µs besides. These are assumptions, not measurements.
"""

from dataclasses import dataclass
from math import ceil

from engine.ticket import Shape, Stage

EFFICIENCY = 0.5
BANDWIDTH_EFFICIENCY = 0.8
KERNEL = 2.5e-6  # seconds
TILE = 128
DEPTH, WIDTH, CONTROL_DEPTH = 28, 1152, 13
PROMPT_TOKENS = 64
T5_WEIGHTS = 4.76e9
HALF = 2  # bytes of a number


@dataclass(frozen=True)
class Gpu:
    """FLOP/s in bf16, bytes/s, streaming multiprocessors."""

    peak: float
    bandwidth: float
    processors: int

    def product(self, m: int, n: int, k: int) -> float:
        """Seconds of [m, k] × [k, n]."""
        waves = ceil(ceil(m / TILE) * ceil(n / TILE) / self.processors)
        flops = waves * self.processors * 2.0 * TILE * TILE * k
        return max(flops / (self.peak * EFFICIENCY), self.moved(m * k + k * n + m * n)) + KERNEL

    def moved(self, numbers: float) -> float:
        """Seconds to read or write so many numbers."""
        return HALF * numbers / (self.bandwidth * BANDWIDTH_EFFICIENCY)


GPUS = {"a100": Gpu(312e12, 2.04e12, 108), "h100": Gpu(989e12, 3.35e12, 132)}


def costs(gpu: Gpu, sides: tuple[int, ...], max_batch: int) -> dict[tuple[Stage, Shape, int], float]:
    """Seconds by stage, shape class (side in pixels, controlled) and batch size, for square pictures."""
    found: dict[tuple[Stage, Shape, int], float] = {("text", None, 1): _text(gpu)}
    for side in sides:
        for controlled in (False, True):
            shape = (side, controlled)
            found["control", shape, 1] = _autoencoder(gpu, side, 1, 2)
            for batch in range(1, max_batch + 1):
                found["denoise", shape, batch] = _step(gpu, side, controlled, batch)
                found["decode", shape, batch] = _autoencoder(gpu, side, batch, 3)
    return found


def _text(gpu: Gpu) -> float:
    flops = 2.0 * T5_WEIGHTS * PROMPT_TOKENS
    return max(flops / (gpu.peak * EFFICIENCY), gpu.moved(T5_WEIGHTS)) + 24 * 12 * KERNEL


def _step(gpu: Gpu, side: int, controlled: bool, batch: int) -> float:
    tokens = (side // 16) ** 2
    m = batch * tokens
    block = gpu.product(m, 3 * WIDTH, WIDTH) + 3 * gpu.product(m, WIDTH, WIDTH)  # self-attention, cross-attention
    block += gpu.product(batch * PROMPT_TOKENS, 2 * WIDTH, WIDTH)
    block += gpu.product(m, 4 * WIDTH, WIDTH) + gpu.product(m, WIDTH, 4 * WIDTH)
    block += 4.0 * batch * tokens * (tokens + PROMPT_TOKENS) * WIDTH / (gpu.peak * EFFICIENCY) + 2 * KERNEL
    block += gpu.moved(12.0 * m * WIDTH) + 5 * KERNEL  # norms, modulation, residuals
    copies = CONTROL_DEPTH * (block + gpu.product(m, WIDTH, WIDTH)) if controlled else 0.0
    return DEPTH * block + copies


def _autoencoder(gpu: Gpu, side: int, batch: int, layers: int) -> float:
    """The decoder (3 residual layers a level) or the encoder (2): 512, 512, 256, 128 channels from 1/8 to full size."""
    seconds = 0.0
    before = 512
    for level, channels in enumerate((512, 512, 256, 128)):
        pixels = batch * (side // 8 * 2**level) ** 2
        shapes = [(before, channels)] + [(channels, channels)] * (2 * layers - 1)
        if level == 0:
            shapes += [(512, 512)] * 4  # the middle
        if level > 0:
            shapes.append((before, before))  # the change of resolution
        for inside, outside in shapes:
            seconds += gpu.product(pixels, outside, 9 * inside) + gpu.moved(4.0 * pixels * outside) + 2 * KERNEL
        before = channels
    tokens = (side // 8) ** 2
    return seconds + 4.0 * batch * tokens**2 * 512 / (gpu.peak * EFFICIENCY)
