"""Weights on disk, once: safetensors files that checkpoints are read from and that ONNX graphs point into."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from models.checkpoints.writer import write_safetensors

ONNX_TYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: the file (relative to the bundle), absolute offset and length in bytes; type and shape."""

    file: str
    offset: int
    length: int
    dtype: ir.DataType
    shape: tuple[int, ...]


def save_weights(modules: Mapping[str, nn.Module], folder: Path, dtype: torch.dtype) -> "WeightIndex":
    """Write each module's state to `folder/<file>` with floating tensors as `dtype`, and index what was written.

    `modules` maps file names such as `weights/dit.safetensors`. A tensor with several names is written once, under the
    first; a tensor of several modules belongs to the first of them. A module without tensors gets no file.

    Raises:
        CheckpointError: a value does not fit into `dtype`.
    """
    index = WeightIndex()
    for file, module in modules.items():
        state = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if tensor not in index}
        if state:
            write_safetensors(folder / file, state, dtype)
            for name, stored in read_header(folder / file, file).items():
                index.add(state[name], stored)
    return index


def read_header(path: Path, file: str) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name.

    The format is a little-endian u64 N, N bytes of JSON whose offsets count from its own end, then the data.
    """
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            dtype = ONNX_TYPES[entry["dtype"]]
            tensors[name] = StoredTensor(file, 8 + length + start, end - start, dtype, tuple(entry["shape"]))
    return tensors


class WeightIndex:
    """Finds the stored bytes of a live tensor, by identity: names differ from wrapper to wrapper, objects do not."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Tensor, StoredTensor]] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._entries

    def add(self, tensor: Tensor, stored: StoredTensor) -> None:
        """Remember where `tensor` was stored; it is kept alive, so that its id stays its own."""
        self._entries[id(tensor)] = (tensor, stored)

    def find(self, tensor: Tensor) -> StoredTensor | None:
        """Where `tensor` was stored, if it was."""
        entry = self._entries.get(id(tensor))
        return entry[1] if entry else None
