"""What a graph costs, counted from the ONNX file itself: floating-point operations, weights, traffic, live memory.

Shapes are made concrete first: sizes for the symbols go in, and node by node ONNX's own inference gives the next
shape, its own reference operators the values from which shapes are computed. Nothing is run on data.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, TypeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from engine.manifest import parse_dimension

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
BYTES = {TensorProto.BOOL: 1, TensorProto.UINT8: 1, TensorProto.INT8: 1, TensorProto.INT32: 4, TensorProto.INT64: 8}

# Values up to this many elements are computed: shapes, indices, scalars.
MAX_VALUES = 4096

# A view gives its input's bytes another shape; Cast is here because in one precision it changes nothing.
VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Cast"}
# Element by element: the result may take its input's place, and a fusing compiler leaves no trace of it.
POINTWISE = {
    "Abs", "Add", "Clip", "Div", "Gelu", "IsNaN", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Round",
    "Sigmoid", "Sqrt", "Sub", "Tanh", "Where",
}  # fmt: skip


@dataclass(frozen=True)
class Shaped:
    """Element type (ONNX's number) and concrete shape of a tensor."""

    dtype: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    def bytes(self, width: int) -> int:
        """Its size when every floating-point number takes `width` bytes."""
        return self.elements * (width if self.dtype in FLOATS else BYTES[self.dtype])


@dataclass(frozen=True)
class Count:
    """Cost of one call. A multiplication with its addition is two operations; pointwise arithmetic is not counted.

    Attributes:
        matmul, attention, conv: floating-point operations of products with weights, of products among activations,
            and of convolutions.
        weights: stored numbers.
        matrices: how many of those are in matrices of products, which weight-only quantisation makes smaller.
        tables: how many are in tables of which a call looks up a few rows only, which `moved` counts instead.
        moved: numbers that those operators read and write beside weights, if all else is fused into them and
            attention scores never leave the chip; a lower bound of the traffic.
    """

    matmul: int = 0
    attention: int = 0
    conv: int = 0
    weights: int = 0
    matrices: int = 0
    tables: int = 0
    moved: int = 0

    @property
    def flops(self) -> int:
        """All operations."""
        return self.matmul + self.attention + self.conv

    def bytes(self, width: int) -> int:
        """Traffic with numbers of `width` bytes: every weight is read once."""
        return width * (self.weights - self.tables + self.moved)

    def __add__(self, other: "Count") -> "Count":
        return Count(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Count)))

    def __sub__(self, other: "Count") -> "Count":
        return self + other * -1

    def __mul__(self, times: int) -> "Count":
        return Count(*(getattr(self, field.name) * times for field in fields(Count)))


class ConcreteGraph:
    """A graph at one size.

    Attributes:
        nodes: in an order in which they can run.
        tensors: type and shape of every value.
        weights: names of the stored tensors.
        constants: names of all values that do not depend on an input's data.

    Raises:
        ValueError: a shape depends on data, or an operator is unknown to ONNX.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int]) -> None:
        model = onnx.load(path, load_external_data=False)
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        graph = model.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.outputs = [value.name for value in graph.output]
        self.inputs = [value.name for value in graph.input]
        self.tensors: dict[str, Shaped] = {}
        self.weights: set[str] = set()
        self._values: dict[str, NDArray] = {}
        for value in graph.input:
            kind = value.type.tensor_type
            shape = tuple(_size(dimension, sizes) for dimension in kind.shape.dim)
            self.tensors[value.name] = Shaped(kind.elem_type, shape)
        for tensor in graph.initializer:
            self.tensors[tensor.name] = Shaped(tensor.data_type, tuple(tensor.dims))
            if tensor.data_location == TensorProto.EXTERNAL:
                self.weights.add(tensor.name)
            else:
                self._values[tensor.name] = numpy_helper.to_array(tensor)
        self.constants = {*self.weights, *self._values}
        for node in self.nodes:
            self._infer(node)

    def _infer(self, node: NodeProto) -> None:
        names = [name for name in node.input if name]
        if node.op_type == "Shape":
            first, last = (_attribute(node, name) for name in ("start", "end"))
            self._set(node.output[0], np.array(self.tensors[names[0]].shape[first:last], dtype=np.int64))
        elif all(name in self._values for name in names) and node.op_type != "Expand":
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(node).run(None, {name: self._values[name] for name in names})
            for name, result in zip(node.output, results, strict=True):
                self._set(name, np.asarray(result))
        else:
            schema = onnx.defs.get_schema(node.op_type, self._opsets[node.domain], node.domain)
            known = {name: numpy_helper.from_array(self._values[name], name) for name in names if name in self._values}
            kinds = {name: _type(self.tensors[name]) for name in names}
            opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
            found = onnx.shape_inference.infer_node_outputs(schema, node, kinds, known, opset_imports=opsets)
            for name in node.output:
                if name:
                    self.tensors[name] = _shaped(node, found.get(name))
        if all(name in self.constants for name in names):
            self.constants.update(node.output)

    def _set(self, name: str, value: NDArray) -> None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        self.tensors[name] = Shaped(kind, value.shape)
        if value.size <= MAX_VALUES:
            self._values[name] = value

    @cached_property
    def makers(self) -> dict[str, NodeProto]:
        """Which node makes a value."""
        return {name: node for node in self.nodes for name in node.output}

    @cached_property
    def scores(self) -> set[str]:
        """Values between the two products of an attention, softmax and pointwise operators included."""
        users: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                users.setdefault(name, []).append(node)
        found: set[str] = set()
        for softmax in (node for node in self.nodes if node.op_type == "Softmax"):
            size = self.tensors[softmax.input[0]].elements
            back, forth = [softmax.input[0]], [softmax.output[0]]
            while back:
                name = back.pop()
                if name not in self.constants and self.tensors[name].elements == size and name not in found:
                    found.add(name)
                    maker = self.makers.get(name)
                    if maker is not None and maker.op_type in POINTWISE | VIEWS:
                        back += maker.input
            while forth:
                name = forth.pop()
                found.add(name)
                for user in users.get(name, []):
                    if user.op_type in POINTWISE | VIEWS:
                        forth += [output for output in user.output if output not in found]
        return found

    def count(self) -> Count:
        """Operations, weights and traffic of one call."""
        flops = {"matmul": 0, "attention": 0, "conv": 0}
        moved = self._elements((*self.inputs, *self.outputs))
        products: list[NodeProto] = []
        for node in self.nodes:
            if node.op_type not in ("MatMul", "Gemm", "Conv") or node.output[0] in self.constants:
                continue
            left, right = (self.tensors[name].shape for name in node.input[:2])
            result = self.tensors[node.output[0]].elements
            if node.op_type == "Conv":
                # right: [out, in / groups, *kernel]
                flops["conv"] += 2 * result * prod(right[1:])
            else:
                shared = left[-2] if node.op_type == "Gemm" and _attribute(node, "transA") else left[-1]
                products.append(node)
                weighted = any(name in self.constants for name in node.input[:2])
                flops["matmul" if weighted else "attention"] += 2 * result * shared
            crossing = (name for name in (*node.input, *node.output) if name not in self.constants | self.scores)
            moved += self._elements(crossing)
        # Reached through casts, transpositions and the like, which are done once.
        matrices = self._stored(name for node in products for name in node.input[:2])
        lookups = [node for node in self.nodes if node.op_type == "Gather" and node.output[0] not in self.constants]
        moved += sum(self.tensors[node.output[0]].elements for node in lookups)
        return Count(
            **flops,
            weights=self._elements(self.weights),
            matrices=self._elements(matrices),
            tables=self._elements(self._stored(node.input[0] for node in lookups) - matrices),
            moved=moved,
        )

    def _elements(self, names: Iterable[str]) -> int:
        return sum(self.tensors[name].elements for name in names)

    def _stored(self, names: Iterable[str]) -> set[str]:
        """The stored tensors that the constants among `names` are made of."""
        found: set[str] = set()
        waiting = [name for name in names if name in self.constants]
        while waiting:
            name = waiting.pop()
            if name in self.makers:
                waiting += self.makers[name].input
            elif name in self.weights:
                found.add(name)
        return found

    def peak(self, width: int, *, fused_attention: bool = True) -> int:
        """The most bytes that activations take at one time, with floating-point numbers of `width` bytes.

        Nodes run in the file's order, views share their input's memory, and a pointwise result takes the place of an
        input that nobody needs any longer. With `fused_attention`, scores are never in memory. Inputs and outputs
        are counted, weights are not.
        """
        owner: dict[str, str] = {}  # value → the value whose memory it shares
        last: dict[str, int] = {name: len(self.nodes) for name in self.outputs}
        skipped = self.scores if fused_attention else set()

        def alive(name: str) -> bool:
            return bool(name) and name not in self.constants and name not in skipped

        for index, node in enumerate(self.nodes):
            for name in filter(alive, node.input):
                last[name] = max(last.get(name, 0), index)
        # A buffer lives as long as its last view; views are followed backwards from the end.
        ends = dict(last)
        for node in reversed(self.nodes):
            if node.op_type in VIEWS and alive(node.output[0]) and alive(node.input[0]):
                ends[node.input[0]] = max(ends.get(node.input[0], 0), ends.get(node.output[0], 0))
        live = {name: self.tensors[name].bytes(width) for name in self.inputs}
        owner.update({name: name for name in live})
        until = {name: ends.get(name, 0) for name in live}
        total = most = sum(live.values())
        for index, node in enumerate(self.nodes):
            for name in filter(alive, node.output):
                home = owner.get(node.input[0]) if node.op_type in VIEWS else None
                if home is None and node.op_type in POINTWISE:
                    size = self.tensors[name].bytes(width)
                    homes = (owner[source] for source in node.input if source in owner)
                    home = next((place for place in homes if until[place] == index and live[place] == size), None)
                if home is None:
                    home = name
                    live[name] = self.tensors[name].bytes(width)
                    total += live[name]
                    until[name] = index
                owner[name] = home
                until[home] = max(until[home], ends.get(name, index))
            most = max(most, total)
            for name in [name for name, end in until.items() if end <= index]:
                total -= live.pop(name)
                del until[name]
        return most


def _size(dimension: onnx.TensorShapeProto.Dimension, sizes: Mapping[str, int]) -> int:
    if not dimension.dim_param:
        return dimension.dim_value
    factor, symbol = parse_dimension(dimension.dim_param.replace(" ", ""))
    return factor * sizes[symbol]


def _attribute(node: NodeProto, name: str) -> int | None:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), None)


def _type(tensor: Shaped) -> TypeProto:
    return onnx.helper.make_tensor_type_proto(tensor.dtype, tensor.shape)


def _shaped(node: NodeProto, found: TypeProto | None) -> Shaped:
    kind = found.tensor_type if found is not None else None
    if kind is None or not kind.HasField("shape") or any(not size.HasField("dim_value") for size in kind.shape.dim):
        raise ValueError(f"{node.op_type} {node.name}: its shape cannot be told from its inputs' shapes")
    return Shaped(kind.elem_type, tuple(size.dim_value for size in kind.shape.dim))
