"""Which machine and which versions a figure was measured with."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe(*packages: str) -> dict[str, str]:
    """Processor, cores, Python and the versions of `packages`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "bf16": ", ".join(name for name in ("avx512_bf16", "amx_bf16") if name in flags) or "no",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16; elsewhere PyTorch emulates it, hundreds of times slower."""
    return describe()["bf16"] != "no"
