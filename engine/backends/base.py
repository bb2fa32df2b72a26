"""What the engine asks of a runtime: compile a graph, run it on named arrays. Everything else is the adapter's own."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engine.manifest import DimensionRange, ModuleSpec, TensorSpec, parse_dimension

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]
Precision = Literal["auto", "f32", "bf16", "f16"]


@dataclass(frozen=True)
class BackendOptions:
    """How to compile. `threads` 0 lets the runtime choose; compiled modules are kept under `cache` if it is given.

    The precision `auto` is the fastest in which the device computes without visible loss.
    """

    device: str = "CPU"
    precision: Precision = "f32"
    threads: int = 0
    streams: int = 1
    cache: Path | None = None


@dataclass(frozen=True)
class Usual:
    """What most calls are like: the numbers of samples `B` for which they should be fast, and all other dimensions.

    With `always`, no call has other dimensions; the number of samples may be any all the same.
    """

    batches: tuple[int, ...]
    dimensions: Mapping[str, int]
    always: bool


@dataclass(frozen=True)
class Source:
    """A module to compile: its graph file, its description, its ranges, and the digest of graph and weights.

    A runtime may make use of what is `usual`; it has to run whatever is in the ranges.
    """

    graph: Path
    spec: ModuleSpec
    dimensions: Mapping[str, DimensionRange]
    digest: str
    usual: Usual | None = None


class Module(Protocol):
    """A compiled module. It runs one call at a time."""

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, Array]:
        """Run on named arrays; results are written into `outputs` where given (C-contiguous), else into new arrays.

        The module may take an array for unchanged when it comes again and is `known_again`.

        Raises:
            ShapeError: an input is missing or surplus, or its dtype or shape is outside the module's description.
        """
        ...


class Backend(Protocol):
    """A runtime. `precision` is what it computes float32 graphs in, once `auto` is decided."""

    name: str
    precision: Precision

    def compile(self, source: Source) -> Module:
        """Make a module ready to run.

        Raises:
            CompileError: the runtime refuses the graph.
        """
        ...


@runtime_checkable
class Keeping(Protocol):
    """A runtime that keeps what it compiles. `kept` are the files of its modules: true those that it wrote anew."""

    @property
    def kept(self) -> Mapping[Path, bool]: ...


class CompileError(Exception):
    """A runtime cannot compile a module; the message names the graph file."""


class ShapeError(ValueError):
    """An array does not fit the module's description; the message names the tensor."""


_ADAPTERS = {
    "openvino": ("engine.backends.openvino", "OpenVINOBackend"),
    "onnxruntime": ("engine.backends.onnxruntime", "OnnxRuntimeBackend"),
    "torch": ("engine.backends.torch", "TorchBackend"),
    "tensorrt": ("engine.backends.tensorrt", "tensorrt"),
    "tensorrt_rtx": ("engine.backends.tensorrt", "tensorrt_rtx"),
}


def names() -> tuple[str, ...]:
    """The backends that can be asked for."""
    return tuple(_ADAPTERS)


def create(name: str, options: BackendOptions) -> Backend:
    """Load the adapter called `name`; its runtime is imported only now.

    Raises:
        ValueError: there is no such adapter.
        ImportError: its runtime is not installed.
        CompileError: it has no device to run on.
    """
    if name not in _ADAPTERS:
        raise ValueError(f"backend {name!r} is not one of {', '.join(_ADAPTERS)}")
    module, adapter = _ADAPTERS[name]
    return cast(Backend, getattr(importlib.import_module(module), adapter)(options))


def prepare(source: Source, inputs: Arrays, outputs: Arrays | None = None) -> tuple[dict[str, Array], dict[str, Array]]:
    """Check inputs and outputs against the module's description, and allocate the outputs that were not given.

    Returns inputs as C-contiguous arrays, and outputs, each by name in the description's order.

    Raises:
        ShapeError: see `Module.run`.
    """
    sizes = check(source, inputs)
    ready = {tensor.name: np.ascontiguousarray(inputs[tensor.name]) for tensor in source.spec.inputs}
    return ready, place(source, shapes(source.spec.outputs, sizes), outputs or {})


def known_again(array: Array) -> bool:
    """Whether an input may be kept and, when it comes again, taken for the same: nobody can write to it.

    Whoever keeps it must keep the array itself alive, so that no other can take its place in memory and pass for it.
    """
    return not array.flags.writeable and array.base is None


def check(source: Source, inputs: Arrays) -> dict[str, int]:
    """The size of each dynamic dimension, by its symbol, in these inputs.

    Raises:
        ShapeError: an input is missing or surplus, or its dtype or shape is outside the module's description.
    """
    spec = source.spec
    if surplus := sorted(set(inputs) - {tensor.name for tensor in spec.inputs}):
        raise ShapeError(f"{surplus[0]}: not an input of {spec.graph}")
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        if tensor.name not in inputs:
            raise ShapeError(f"{tensor.name}: input of {spec.graph} is missing")
        array = inputs[tensor.name]
        if array.dtype != np.dtype(tensor.dtype) or array.ndim != len(tensor.shape):
            raise ShapeError(
                f"{tensor.name}: {array.dtype}{list(array.shape)} is not {tensor.dtype}{list(tensor.shape)}"
            )
        for dimension, size in zip(tensor.shape, array.shape, strict=True):
            if not _fits(dimension, size, sizes, source.dimensions):
                raise ShapeError(f"{tensor.name}: shape {list(array.shape)} does not fit {list(tensor.shape)}")
    return sizes


def shapes(tensors: Iterable[TensorSpec], sizes: Mapping[str, int]) -> Shapes:
    """The shape of each tensor where dynamic dimensions have these sizes."""
    return {tensor.name: tuple(_size(dimension, sizes) for dimension in tensor.shape) for tensor in tensors}


def place(source: Source, shapes: Shapes, outputs: Arrays) -> dict[str, Array]:
    """Arrays of these shapes for all outputs: those that are given, and new ones.

    Raises:
        ShapeError: a given array has another dtype or shape, or is not C-contiguous.
    """
    results: dict[str, Array] = {}
    for tensor in source.spec.outputs:
        shape, given = shapes[tensor.name], outputs.get(tensor.name)
        if given is None:
            given = np.empty(shape, dtype=tensor.dtype)
        elif given.shape != shape or given.dtype != np.dtype(tensor.dtype) or not given.flags.c_contiguous:
            raise ShapeError(f"{tensor.name}: output array is not a C-contiguous {tensor.dtype}{list(shape)}")
        results[tensor.name] = given
    return results


def _fits(expected: int | str, size: int, sizes: dict[str, int], ranges: Mapping[str, DimensionRange]) -> bool:
    """Whether `size` is what is expected; the first use of a symbol fixes its value."""
    if isinstance(expected, int):
        return size == expected
    factor, symbol = parse_dimension(expected)
    if size % factor or not ranges[symbol].allows(size // factor):
        return False
    return sizes.setdefault(symbol, size // factor) == size // factor


def _size(dimension: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(dimension, int):
        return dimension
    factor, symbol = parse_dimension(dimension)
    return factor * sizes[symbol]
