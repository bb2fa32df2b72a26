"""Safetensors files written one tensor at a time.

The library's own `save_file` wants every tensor in memory in its final type at once, which for T5-XXL is
9 GB beside the mapped source. Format: a little-endian u64 N, N bytes of JSON, then the tensors' bytes in
the order and at the offsets that the JSON states.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError

TYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
ALIGNMENT = 64  # of the data's start, by spaces after the JSON


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write `tensors` to `path`, floating ones as `dtype`; of names that share one tensor, the first alone.

    The file appears when it is complete.

    Raises:
        CheckpointError: a value does not fit into `dtype`, or a tensor's type has no name here.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chosen: dict[str, Tensor] = {}
    offset = 0
    for name, tensor in tensors.items():
        if any(tensor is seen for seen in chosen.values()):
            continue
        stored = dtype if tensor.is_floating_point() else tensor.dtype
        if stored not in TYPE_NAMES:
            raise CheckpointError(f"{path}: {name} is {stored}, which is not written")
        size = tensor.numel() * stored.itemsize
        header[name] = {
            "dtype": TYPE_NAMES[stored],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        chosen[name] = tensor
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    with scratch.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name, tensor in chosen.items():
            value = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise CheckpointError(f"{path}: {name} does not fit into {dtype}")
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)
    scratch.replace(path)
