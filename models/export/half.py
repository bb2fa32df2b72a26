"""Strongly typed variants of a bundle's graphs: products in half precision, everything that half cannot hold in single.

TensorRT takes the precision of each operation from the graph, so the graph has to say it. The rules, in their order:

1. Matrix products and convolutions take and give half precision (they accumulate in single on every GPU), except the
   few of `SINGLE_WEIGHTS`, which are small and whose rounding the sampler would multiply.
2. Norms, softmax, powers, reductions and trigonometry are single.
3. A sum of two activations is single: these are the residual streams. T5's and the VAE's grow past float16's 65504.
4. What remains (biases, GELU, reshapes …) is single if an input is, else half. Weights and constants have no say.
5. In float16, products that read a residual stream, or end in one beyond 65504, are scaled: x/64 goes in and 64 times
   the result comes out, in single. Powers of two round nothing. These are all convolutions and T5's `wo`.

Inputs and outputs stay as the manifest has them. uint8 appears at the border alone, which is where TensorRT allows it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

GraphPrecision = Literal["fp32", "bf16", "fp16"]
HALF_TYPES = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16}
SCALE = 64.0
HALF_MAX = 65504.0

# The timestep's and the size's embedding, and the first and the last layer of the transformer: at the first step x0 is
# the prediction times 157, so half precision's rounding of either end would be seen.
SINGLE_WEIGHTS = re.compile(
    r"(^|\.)(time_mlp|resolution_mlp|aspect_ratio_mlp|time_modulation|patch|final)(\.\w+)*\.(weight|bias)"
)
SCALED_WEIGHTS = re.compile(r"\.DenseReluDense\.wo\.weight$")
PRODUCTS = {"MatMul", "Gemm", "Conv"}
SINGLE_OPERATIONS = {
    "Softmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "Pow", "Exp",
    "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Round", "ReduceMean", "ReduceSum", "ReduceMax",
}  # fmt: skip
# Moving a weight's values about leaves it a weight.
MOVEMENTS = {"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Split", "Concat", "Identity", "Expand"}
# Inputs that are float32 by ONNX's definition, whatever the tensor's type: (operation, position).
ALWAYS_SINGLE = {("Resize", 1), ("Resize", 2)}
BF16_OPSET = 22  # the first whose convolutions take bfloat16; nothing that is used here changed its meaning since 20
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def typed_graph(path: Path, precision: GraphPrecision) -> ModelProto:
    """The graph at `path` with the precision of every operation spelled out; weights stay where they are.

    The result's external data is relative to the folder of `path`.

    Raises:
        ValueError: the file is no ONNX graph of one domain in the form that `models.export` writes.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.output:
            raise ValueError("it computes nothing")
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:  # protobuf's and onnx's errors have no common base
        raise ValueError(f"{path.name}: is damaged, or no ONNX graph ({error}); export it anew") from error
    return _Writer(model, inferred, HALF_TYPES.get(precision), scaled=precision == "fp16").write()


class _Writer:
    """Copies the nodes of one graph in their order, with casts where the types of two neighbours differ.

    `_types` knows of each float value what it is: `half` or `single` (activations), `weight` or `constant` (exact
    in both). uint8 values are `single` here: they hold whole numbers up to 255.
    """

    def __init__(self, model: ModelProto, inferred: ModelProto, half: int | None, scaled: bool) -> None:
        self._model = model
        self._half = half
        self._scaled = scaled
        self._nodes: list[NodeProto] = []
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._new: dict[str, TensorProto] = {}
        self._casts: set[str] = set()
        self._types: dict[str, str] = {}
        self._alias: dict[str, str] = {}  # values that need no node any more
        self._origins: dict[str, str] = {}  # value made of one weight alone: the weight's name
        self._outputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
        graph = inferred.graph
        self._elements = {
            value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)
        }
        self._elements.update((tensor.name, tensor.data_type) for tensor in graph.initializer)

    def write(self) -> ModelProto:
        """Do it all."""
        for tensor in self._initializers.values():
            if tensor.data_type in FLOATS:
                external = tensor.data_location == TensorProto.EXTERNAL
                big = not external and float(np.abs(numpy_helper.to_array(tensor)).max(initial=0)) > HALF_MAX
                self._types[tensor.name] = "weight" if external else "single" if big else "constant"
                self._origins[tensor.name] = tensor.name
        for value in self._model.graph.input:
            if self._elements[value.name] == TensorProto.UINT8:
                self._alias[value.name] = self._cast(value.name, TensorProto.FLOAT, f"{value.name}:single")
            if self._is_float(value.name):
                self._types[value.name] = "single"
        for node in self._model.graph.node:
            self._copy(node)
        return self._finish()

    def _is_float(self, name: str) -> bool:
        element = self._elements.get(name, 0)
        return element in FLOATS or element == TensorProto.UINT8

    def _copy(self, node: NodeProto) -> None:
        if node.op_type == "Cast" and self._is_float(node.input[0]) and self._is_float(node.output[0]):
            self._copy_cast(node)
            return
        if not any(map(self._is_float, (*node.input, *node.output))) or node.op_type in ("Shape", "Size"):
            self._emit(node, [self._alias.get(name, name) for name in node.input], "single")
            return
        kind = self._kind(node)
        if self._scaled and kind == "half" and self._needs_scale(node):
            self._emit_scaled(node)
            return
        inputs = [
            self._as(name, "single" if (node.op_type, place) in ALWAYS_SINGLE else kind)
            for place, name in enumerate(node.input)
        ]
        self._emit(node, inputs, kind)

    def _copy_cast(self, node: NodeProto) -> None:
        """Casts among floats (and uint8) say nothing here: what they joined is of one kind."""
        source, target = node.input[0], node.output[0]
        if target in self._outputs:
            self._emit_identity(self._as(source, "single"), target)
            return
        self._alias[target] = self._alias.get(source, source)
        self._types[target] = self._types[source]
        if source in self._origins:
            self._origins[target] = self._origins[source]

    def _kind(self, node: NodeProto) -> str:
        """The precision in which `node` computes."""
        floats = [name for name in node.input if name and self._is_float(name)]
        kinds = [self._types[name] for name in floats]
        if floats and node.op_type in MOVEMENTS and set(kinds) <= {"weight"}:
            self._origins.update({name: self._origins.get(floats[0], "") for name in node.output})
            return "weight"
        if self._half is None or node.op_type in SINGLE_OPERATIONS:
            return "single"
        if node.op_type in PRODUCTS:
            origins = [self._origins.get(name, "") for name in floats]
            return "single" if any(map(SINGLE_WEIGHTS.search, origins)) else "half"
        activations = [kind for kind in kinds if kind in ("half", "single")]
        if not floats or (node.op_type in ("Add", "Sub", "Sum") and len(activations) > 1):
            return "single"
        return "single" if "single" in activations else "half"

    def _needs_scale(self, node: NodeProto) -> bool:
        origins = (self._origins.get(name, "") for name in node.input)
        return node.op_type == "Conv" or any(map(SCALED_WEIGHTS.search, origins))

    def _emit_scaled(self, node: NodeProto) -> None:
        """y = scale · (x/scale ∗ w) + bias, the product alone in half precision."""
        output = node.output[0]
        # Made in single, since the activation may be beyond half already; its cast to half comes after.
        small = self._add("Mul", [self._as(node.input[0], "single"), self._number(1 / SCALE)], f"{output}:in")
        operands = [self._cast(small, self._half, f"{output}:in:half"), self._as(node.input[1], "half")]
        product = NodeProto()
        product.CopyFrom(node)
        del product.input[:], product.output[:]
        product.input.extend(operands)
        product.output.append(f"{output}:product")
        self._nodes.append(product)
        large = self._cast(f"{output}:product", TensorProto.FLOAT, f"{output}:product:single")
        bias = node.input[2] if len(node.input) > 2 else ""
        last = f"{output}:scaled" if bias else output
        self._add("Mul", [large, self._number(SCALE)], last)
        if bias:
            shape = self._constant(f"{output}:bias:shape", np.array([1, -1, 1, 1], np.int64))
            column = self._add("Reshape", [self._as(bias, "single"), shape], f"{output}:bias")
            self._add("Add", [last, column], output)
        self._types[output] = "single"

    def _emit(self, node: NodeProto, inputs: Sequence[str], kind: str) -> None:
        """Copy `node` as computing in `kind`; a result of the graph gets its promised type."""
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
        self._nodes.append(copy)
        for place, name in enumerate(node.output):
            if self._is_float(name):
                self._types[name] = kind
                promised = self._outputs.get(name)
                if promised is not None and (kind != "single" or promised != TensorProto.FLOAT):
                    copy.output[place] = f"{name}:inner"
                    self._cast(f"{name}:inner", promised, name)
                    self._types[name] = "single"

    def _emit_identity(self, source: str, target: str) -> None:
        """`source`, of type single, as the graph's output `target`."""
        if self._outputs[target] == TensorProto.FLOAT:
            self._add("Identity", [source], target)
        else:
            self._cast(source, self._outputs[target], target)

    def _as(self, name: str, kind: str) -> str:
        """The value in the type that `kind` asks for; weights are cast where they are used, constants made anew."""
        if not name or not self._is_float(name):
            return name
        have, actual = self._types[name], self._alias.get(name, name)
        if have == kind or kind == "weight":
            return actual
        if have == "constant":
            return actual if kind == "single" else self._half_constant(name)
        if kind == "half" and have == "weight" and self._stored(name) == self._half:
            return actual
        if kind == "single" and have == "weight" and self._stored(name) == TensorProto.FLOAT:
            return actual
        target = TensorProto.FLOAT if kind == "single" else self._half
        return self._cast(actual, target, f"{actual}:{kind}")

    def _stored(self, name: str) -> int:
        """The type in which a weight is stored."""
        return self._initializers[self._origins[name]].data_type

    def _half_constant(self, name: str) -> str:
        values = numpy_helper.to_array(self._initializers[name])
        if self._half == TensorProto.BFLOAT16:
            return self._cast(name, self._half, f"{name}:half")
        return self._constant(f"{name}:half", values.astype(np.float16))

    def _number(self, value: float) -> str:
        return self._constant(f"number:{value:g}", np.array(value, np.float32))

    def _constant(self, name: str, values: np.ndarray) -> str:
        if name not in self._new:
            self._new[name] = numpy_helper.from_array(values, name)
        return name

    def _cast(self, source: str, target: int | None, name: str) -> str:
        if name not in self._casts:
            self._nodes.append(helper.make_node("Cast", [source], [name], f"cast:{name}", to=target))
            self._casts.add(name)
        return name

    def _add(self, operation: str, inputs: Sequence[str], output: str) -> str:
        self._nodes.append(helper.make_node(operation, inputs, [output], f"{operation.lower()}:{output}"))
        return output

    def _finish(self) -> ModelProto:
        """The model with the nodes that something still needs."""
        needed = set(self._outputs)
        kept: list[NodeProto] = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        result = ModelProto()
        result.CopyFrom(self._model)
        graph = result.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        for tensor in (*self._initializers.values(), *self._new.values()):
            if tensor.name in needed:
                graph.initializer.append(tensor)
        if self._half == TensorProto.BFLOAT16:
            for opset in result.opset_import:
                if not opset.domain:
                    opset.version = max(opset.version, BF16_OPSET)
        return result
