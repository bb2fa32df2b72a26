"""In which arithmetic the stages run."""

import torch


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware; elsewhere it is emulated, slower than float32."""
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))


def mixed_precision() -> torch.autocast:
    """bfloat16 for matrix products and convolutions where the CPU has it; float32 everywhere else."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_native_bfloat16())
