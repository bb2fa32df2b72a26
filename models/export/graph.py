"""A torch module as an ONNX graph whose weights stay in the safetensors files."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from models.export.weights import StoredTensor, WeightIndex

OPSET = 20
MAX_INLINE_BYTES = 256 * 1024

TORCH_TYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool, "uint8": torch.uint8}


@dataclass(frozen=True)
class TensorPlan:
    """Name, dtype and shape of a graph's input or output; dynamic dimensions are symbols such as `H` or `8*H`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def example(self, sizes: Mapping[str, int]) -> Tensor:
        """Zeros (ones for masks) of this plan's shape with the symbols' `sizes`."""
        shape = [size_of(dimension, sizes) for dimension in self.shape]
        return torch.full(shape, self.dtype == "bool", dtype=TORCH_TYPES[self.dtype])


@dataclass(frozen=True)
class ModulePlan:
    """A module of the bundle: how it is called and what it gives back."""

    name: str
    module: nn.Module
    inputs: tuple[TensorPlan, ...]
    outputs: tuple[TensorPlan, ...]


def size_of(dimension: int | str, sizes: Mapping[str, int]) -> int:
    """The value of a dimension, given those of the symbols."""
    if isinstance(dimension, int):
        return dimension
    factor, _, symbol = dimension.rpartition("*")
    return int(factor or 1) * sizes[symbol]


def write_graph(plan: ModulePlan, index: WeightIndex, sizes: Mapping[str, int], folder: Path) -> tuple[str, ...]:
    """Export `plan.module` to `folder/<name>.onnx`; returns the weight files it points into.

    `sizes` are the example values of the symbols to trace with; let them differ from each other, and none be 1.

    Raises:
        ValueError: a large tensor of the module is in no weight file.
    """
    model = _trace(plan, sizes)
    stored = _lift_weights(model, plan, index)
    onnxscript.optimizer.optimize(model)
    _attach_weights(model, stored, folder)
    _describe(model, plan)
    path = folder / f"{plan.name}.onnx"
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    return tuple(sorted({tensor.file for name, tensor in stored.items() if name in model.graph.initializers}))


def _trace(plan: ModulePlan, sizes: Mapping[str, int]) -> ir.Model:
    examples = tuple(tensor.example(sizes) for tensor in plan.inputs)
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in plan.inputs
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Relations such as N = H/2·W/2 cannot be stated as dimensions; deferred, they become assertions, which ONNX
        # leaves out and the engine's own shape checks replace.
        program = torch.export.export(
            plan.module.eval(),
            examples,
            dynamic_shapes=dynamic,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,  # would fold weights before they can be lifted
            opset_version=OPSET,
            input_names=[tensor.name for tensor in plan.inputs],
            output_names=[tensor.name for tensor in plan.outputs],
            verbose=False,
        )
    if exported is None:
        raise RuntimeError(f"{plan.name}: torch exported nothing")
    return exported.model


def _lift_weights(model: ir.Model, plan: ModulePlan, index: WeightIndex) -> dict[str, StoredTensor]:
    """Turn stored weights into graph inputs, so that no optimisation can fold them into tensors of its own."""
    graph = model.graph
    state = plan.module.state_dict(keep_vars=True)
    lifted: dict[str, StoredTensor] = {}
    for name, value in list(graph.initializers.items()):
        stored = index.find(state[name]) if name in state else None
        if stored is not None:
            lifted[name] = stored
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
        elif value.const_value is not None and value.const_value.nbytes > MAX_INLINE_BYTES:
            raise ValueError(f"{plan.name}: {name} has {value.const_value.nbytes} bytes but is in no weight file")
    return lifted


def _attach_weights(model: ir.Model, stored: Mapping[str, StoredTensor], folder: Path) -> None:
    """Turn lifted weights into initializers that point into the weight files, cast to what the graph computes in."""
    graph = model.graph
    casts: list[ir.Node] = []
    for value in [value for value in graph.inputs if value.name in stored]:
        graph.inputs.remove(value)
        if not value.uses():
            continue
        name = str(value.name)
        place = stored[name]
        shape = ir.Shape(place.shape)
        initializer = ir.Value(name=name, shape=shape, type=ir.TensorType(place.dtype))
        initializer.const_value = ir.ExternalTensor(
            place.file, place.offset, place.length, place.dtype, shape=shape, name=name, base_dir=folder
        )
        wanted = value.dtype
        if wanted is None or wanted == place.dtype:
            ir.convenience.replace_all_uses_with(value, initializer)
        else:
            value.name = f"{name}:{wanted.name.lower()}"
            casts.append(ir.node("Cast", [initializer], attributes={"to": int(wanted)}, outputs=[value]))
        graph.initializers[name] = initializer
    graph.insert_before(graph[0], casts)


def _describe(model: ir.Model, plan: ModulePlan) -> None:
    """Name the dynamic dimensions as the manifest does, and drop traces of the exporting machine's source paths."""
    for tensors, values in ((plan.inputs, model.graph.inputs), (plan.outputs, model.graph.outputs)):
        for tensor, value in zip(tensors, values, strict=True):
            if value.name != tensor.name:
                raise ValueError(f"{plan.name}: {value.name!r} was exported where {tensor.name!r} was planned")
            value.shape = ir.Shape(tensor.shape)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
