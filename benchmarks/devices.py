"""What hardware can do at best: datasheet figures of GPUs, and this machine's own, measured."""

import time
from dataclasses import dataclass

import torch

GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Device:
    """Dense peak in operations per second at numbers of `width` bytes, memory bandwidth in bytes per second.

    `published` is PixArt-δ's seconds for a 1024×1024 picture in 4 steps at batch 1, where the paper has one.
    """

    name: str
    peak: float
    bandwidth: float
    width: int
    source: str
    published: float | None = None


# Dense fp16 tensor-core rates with fp32 accumulation; NVIDIA often prints twice as much, for sparse matrices.
GPUS = (
    Device(
        "A100 80 GB (SXM4)",
        312 * TERA,
        2039 * GB,
        2,
        "NVIDIA A100 Tensor Core GPU datasheet: 312 TFLOPS FP16, 2,039 GB/s",
        published=0.51,
    ),
    Device(
        "H100 80 GB (SXM5)",
        989.4 * TERA,
        3350 * GB,
        2,
        "NVIDIA H100 Tensor Core GPU datasheet: 1,979 TFLOPS FP16 with sparsity, half of it dense; 3.35 TB/s",
    ),
    Device(
        "L4",
        121 * TERA,
        300 * GB,
        2,
        "NVIDIA L4 Tensor Core GPU datasheet: 242 TFLOPS FP16 with sparsity, half of it dense; 300 GB/s",
    ),
    Device(
        "RTX 4090",
        165.2 * TERA,
        1008 * GB,
        2,
        "NVIDIA Ada GPU architecture whitepaper: 165.2 TFLOPS FP16 with FP32 accumulate; 1,008 GB/s",
    ),
    Device(
        "V100 (SXM2)",
        125 * TERA,
        900 * GB,
        2,
        "NVIDIA V100 Tensor Core GPU datasheet: 125 TFLOPS tensor performance, 900 GB/s",
        published=0.8,
    ),
    Device(
        "T4",
        65 * TERA,
        320 * GB,
        2,
        "NVIDIA T4 Tensor Core GPU datasheet: 65 TFLOPS mixed precision; Turing whitepaper: 320 GB/s",
        published=3.3,
    ),
)


def this_cpu(size: int = 2048, megabytes: int = 256, rounds: int = 3) -> Device:
    """This machine in float32: the best rate of a square matrix product, and of reading and writing memory."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    result = torch.empty(size, size)
    source = torch.ones(megabytes * 2**18)
    target = torch.empty_like(source)
    multiply = _best(lambda: torch.mm(left, right, out=result), rounds)
    copy = _best(lambda: target.copy_(source), rounds)
    threads = torch.get_num_threads()
    what = f"measured: {size}×{size} float32 product and copy of {megabytes} MiB, {threads} threads, best of {rounds}"
    return Device("this CPU", 2 * size**3 / multiply, 2 * source.nbytes / copy, 4, what)


def _best(call: object, rounds: int) -> float:
    assert callable(call)
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
