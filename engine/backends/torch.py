"""PyTorch, as the reference: it runs a graph node by node, by the operators' definitions, on a CPU or a CUDA device.

An independent reading of the graphs, to judge the other backends by; it fuses and optimises nothing. It needs the
packages of the extra `compile`, which are loaded only here.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.backends.base import Array, Arrays, BackendOptions, CompileError, Precision, Source, prepare
from engine.backends.torch_operators import TYPES, Operators

_EXTERNAL = 1  # TensorProto.EXTERNAL


@dataclass(frozen=True)
class _Step:
    """One node, ready to call; `dead` are the values that nobody needs after it."""

    function: Any
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dead: tuple[str, ...]
    where: str


class TorchModule:
    """A graph's nodes in order, and its constants on the device."""

    def __init__(self, source: Source, torch: Any, device: Any, constants: dict[str, Any], steps: list[_Step]) -> None:
        self._source = source
        self._torch = torch
        self._device = device
        self._constants = constants
        self._steps = steps

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, Array]:
        """See `engine.backends.base.Module.run`."""
        ready, results = prepare(self._source, inputs, outputs)
        with self._torch.inference_mode():
            values = {name: self._torch.from_numpy(array).to(self._device) for name, array in ready.items()}
            values |= self._constants
            for step in self._steps:
                _call(step, values)
                for name in step.dead:
                    del values[name]
            for name, array in results.items():
                array[...] = values[name].cpu().numpy()
        return results


class TorchBackend:
    """Interprets graphs in the types that they are written in.

    Raises:
        ImportError: torch or onnx is not installed.
        ValueError: another precision than f32 is asked for, or a device that torch does not find.
    """

    name = "torch"
    precision: Precision = "f32"

    def __init__(self, options: BackendOptions) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._onnx: Any = importlib.import_module("onnx")
        if options.precision not in ("auto", "f32"):
            raise ValueError(f"torch runs graphs in their own types, so precision {options.precision!r} has no meaning")
        kind = options.device.lower()
        if kind.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"device {options.device!r} is not CPU, CUDA or CUDA:<number>")
        if kind != "cpu" and not self._torch.cuda.is_available():
            raise ValueError("device CUDA: the installed torch finds no CUDA device; use CPU")
        if options.threads:
            self._torch.set_num_threads(options.threads)
        self._device = self._torch.device(kind)
        self._operators = Operators(self._torch)

    def compile(self, source: Source) -> TorchModule:
        """See `engine.backends.base.Backend.compile`."""
        try:
            graph = self._onnx.load(source.graph, load_external_data=False).graph
            constants = {tensor.name: self._tensor(tensor, source.graph.parent) for tensor in graph.initializer}
            steps = self._fold([self._step(node) for node in graph.node], constants)
        except CompileError as error:
            raise CompileError(f"{source.graph.name}: {error}") from error
        except Exception as error:  # protobuf's and onnx's exceptions have no common base
            raise CompileError(f"{source.graph.name}: cannot be read ({error})") from error
        kept = {name for step in steps for name in step.inputs} | {value.name for value in graph.output}
        constants = {name: value for name, value in constants.items() if name in kept}
        steps = _bury(steps, {*constants, *(value.name for value in graph.output)})
        return TorchModule(source, self._torch, self._device, constants, steps)

    def _step(self, node: Any) -> _Step:
        function = self._operators.find(node.op_type) if node.domain in ("", "ai.onnx") else None
        if function is None:
            raise CompileError(f"the torch backend has no operator {node.domain or 'ai.onnx'}.{node.op_type}")
        attributes = {entry.name: self._attribute(entry) for entry in node.attribute}
        where = f"{node.op_type} {node.name or node.output[0]}"
        return _Step(function, attributes, tuple(node.input), tuple(node.output), (), where)

    def _attribute(self, entry: Any) -> Any:
        value = self._onnx.helper.get_attribute_value(entry)
        return value.decode() if isinstance(value, bytes) else value

    def _tensor(self, tensor: Any, folder: Path) -> Any:
        if tensor.data_location != _EXTERNAL:
            # A writable copy, which torch asks for.
            return self._torch.from_numpy(np.array(self._onnx.numpy_helper.to_array(tensor))).to(self._device)
        place = {entry.key: entry.value for entry in tensor.external_data}
        path = folder / place["location"]
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CompileError(f"weight {tensor.name} lies outside the bundle, at {place['location']}")
        length, offset = int(place["length"]), int(place.get("offset", 0))
        raw = np.fromfile(path, dtype=np.uint8, count=length, offset=offset)
        if raw.size != length:
            raise CompileError(f"{place['location']} ends before weight {tensor.name} does")
        values = self._torch.from_numpy(raw).view(getattr(self._torch, TYPES[tensor.data_type]))
        return values.reshape(tuple(tensor.dims)).to(self._device)

    def _fold(self, steps: list[_Step], constants: dict[str, Any]) -> list[_Step]:
        """Compute once what depends on no input; `constants` receives the results."""
        left = []
        with self._torch.inference_mode():
            for step in steps:
                if all(name in constants for name in step.inputs if name):
                    _call(step, constants)
                else:
                    left.append(step)
        return left


def _call(step: _Step, values: dict[str, Any]) -> None:
    try:
        result = step.function(step.attributes, *(values[name] if name else None for name in step.inputs))
    except Exception as error:
        raise RuntimeError(f"{step.where}: {error}") from error
    for name, value in zip(step.outputs, result if isinstance(result, tuple | list) else (result,), strict=True):
        values[name] = value


def _bury(steps: list[_Step], immortal: set[str]) -> list[_Step]:
    """Note at each step which values are read there for the last time."""
    seen = set(immortal)
    result = []
    for step in reversed(steps):
        dead = tuple(sorted({name for name in (*step.inputs, *step.outputs) if name} - seen))
        seen.update(dead)
        result.append(_Step(step.function, step.attributes, step.inputs, step.outputs, dead, step.where))
    return result[::-1]
