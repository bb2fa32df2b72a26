"""Weight-only quantisation: large matrices in 8 bits, each row with a scale of its own; arithmetic stays in float.

Made for T5-XXL, of whose 4.8 billion weights no sum is worth the time that reading them takes. One tensor at a time
is in memory. https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html defines what runtimes make of the result.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

MIN_ELEMENTS = 4096
ALIGNMENT = 64
NUMPY_TYPES: Mapping[int, type] = {TensorProto.FLOAT16: np.float16, TensorProto.FLOAT: np.float32}


def compress_weights(graph: Path, target: Path, weights: str) -> int:
    """Write `graph` to `target` with its stored matrices in 8 bits, which go to the file `weights` beside `target`.

    A matrix w becomes round(w / s) with s = max |row| / 127 for each row, which is an output channel of a linear
    layer and a token of an embedding. All else still points where it did, relative to the folder of `target`. Returns
    how many matrices there were.

    Raises:
        ValueError: there is none.
    """
    model = onnx.load(graph, load_external_data=False)
    casts = {node.input[0]: node for node in model.graph.node if node.op_type == "Cast"}
    file = target.parent / weights
    file.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with file.open("wb") as stream:
        for tensor in list(model.graph.initializer):
            external = tensor.data_location == TensorProto.EXTERNAL
            if not external or len(tensor.dims) != 2 or np.prod(tensor.dims) < MIN_ELEMENTS:
                continue
            steps, scales = quantise_rows(_read(tensor, graph.parent))
            stream.write(bytes(-stream.tell() % ALIGNMENT))
            offset = stream.tell()
            stream.write(steps.tobytes())
            _replace(model, tensor, casts.get(tensor.name), scales, (weights, offset, steps.nbytes))
            count += 1
    if not count:
        raise ValueError(f"{graph.name} has no stored matrix of {MIN_ELEMENTS} numbers or more")
    onnx.save(model, target)
    return count


def quantise_rows(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 [R, C] and float32 scales [R] such that steps · scale is `matrix` within half a scale."""
    scales = np.abs(matrix).max(axis=1) / np.float32(127)
    scales[scales == 0] = 1.0  # a row of zeros
    return np.rint(matrix / scales[:, None]).astype(np.int8), scales


def _read(tensor: TensorProto, folder: Path) -> NDArray[np.float32]:
    place = {entry.key: entry.value for entry in tensor.external_data}
    kind = np.dtype(NUMPY_TYPES[tensor.data_type])
    offset, count = int(place["offset"]), int(place["length"]) // kind.itemsize
    values = np.fromfile(folder / place["location"], dtype=kind, count=count, offset=offset)
    return values.reshape(tuple(tensor.dims)).astype(np.float32)


def _replace(
    model: ModelProto,
    tensor: TensorProto,
    cast: onnx.NodeProto | None,
    scales: NDArray[np.float32],
    place: tuple[str, int, int],
) -> None:
    """Store the steps for `tensor`, and give their values to what read it, which was a cast to float32 as exported."""
    name = tensor.name
    steps = TensorProto(name=f"{name}:int8", data_type=TensorProto.INT8, dims=tensor.dims)
    steps.data_location = TensorProto.EXTERNAL
    for key, value in zip(("location", "offset", "length"), place, strict=True):
        steps.external_data.add(key=key, value=str(value))
    result = name if cast is None else cast.output[0]
    restore = helper.make_node("DequantizeLinear", [steps.name, f"{name}:scale"], [result], axis=0)
    graph = model.graph
    graph.initializer.remove(tensor)
    graph.initializer.extend([steps, numpy_helper.from_array(scales, f"{name}:scale")])
    if cast is not None:
        graph.node.remove(cast)
    graph.node.insert(0, restore)
