"""A module on OpenVINO: graphs for exact numbers of samples, and one for whatever else is in the ranges."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import openvino as ov

from engine.backends.base import Array, Arrays, Shapes, Source, check, known_again, place, shapes
from engine.manifest import TensorSpec

Key = tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]


@dataclass(frozen=True)
class Graph:
    """What OpenVINO compiled, and the memory that it may read from as long as it is there."""

    compiled: Any
    blob: Any = None


class Call:
    """A compiled graph with one inference request.

    The request reads from arrays that stay bound to it while shapes stay the same, and writes to the caller's. To copy
    a step's inputs takes a tenth of the time of checking and binding them anew.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._request = graph.compiled.create_infer_request()
        self._bound: dict[str, Array] = {}
        self._kept: dict[str, Array] = {}  # inputs that nobody writes to, as they were given the last time

    def run(self, inputs: Arrays, outputs: Arrays) -> None:
        """Run on inputs of any shape that the graph takes, into C-contiguous outputs of the shapes that follow."""
        bound = self._bound
        if bound.keys() != inputs.keys() or any(bound[name].shape != array.shape for name, array in inputs.items()):
            self._bind(inputs)
        for name, array in inputs.items():
            if self._kept.get(name) is not array:
                np.copyto(self._bound[name], array)
                if known_again(array):
                    self._kept[name] = array
                else:
                    self._kept.pop(name, None)
        for name, array in outputs.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._request.infer()

    def _bind(self, inputs: Arrays) -> None:
        self._kept.clear()
        self._bound = {name: np.empty(array.shape, array.dtype) for name, array in inputs.items()}
        for name, array in self._bound.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))


@dataclass(frozen=True)
class Route:
    """How to run inputs of some shapes: the outputs' shapes, and the parts to run, or none for the general graph."""

    shapes: Shapes
    parts: Sequence[tuple[int, int]]


class OpenVINOModule:
    """A compiled module.

    `exact` are graphs for the source's usual sizes, by their number of samples. If there are any, all calls of these
    sizes are made up of them, so that a sample is computed alike in any company: graphs of fixed shapes are fused
    otherwise, and round otherwise. `general` gives the graph for all other sizes when the first such call comes.
    """

    def __init__(self, source: Source, exact: Mapping[int, Graph], general: Callable[[], Graph]) -> None:
        self._source = source
        self._names = tuple(tensor.name for tensor in source.spec.inputs)
        self._exact = {batch: Call(graph) for batch, graph in exact.items()}
        self._compile_general = general
        self._routes: dict[Key, Route] = {}

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, Array]:
        """See `engine.backends.base.Module.run`."""
        route = self._routes.get(self._key(inputs)) or self._find(inputs)
        results = place(self._source, route.shapes, outputs or {})
        if not route.parts:
            self.general.run(inputs, results)
        elif len(route.parts) == 1 and route.parts[0][0] == route.parts[0][1]:
            self._exact[route.parts[0][1]].run(inputs, results)
        else:
            self._run_parts(route.parts, inputs, results)
        return results

    @cached_property
    def general(self) -> Call:
        """The graph for any sizes."""
        return Call(self._compile_general())

    def _key(self, inputs: Arrays) -> Key:
        """Equal for inputs of equal names, shapes and types."""
        if len(inputs) != len(self._names):
            return ()
        try:
            arrays = [inputs[name] for name in self._names]
        except KeyError:
            return ()
        return tuple((array.shape, array.dtype) for array in arrays)

    def _find(self, inputs: Arrays) -> Route:
        sizes = check(self._source, inputs)
        usual = self._source.usual
        fits = usual is not None and all(usual.dimensions.get(symbol) in (None, sizes[symbol]) for symbol in sizes)
        parts = portions(sizes["B"], tuple(self._exact)) if self._exact and fits else ()
        route = self._routes[self._key(inputs)] = Route(shapes(self._source.spec.outputs, sizes), parts)
        return route

    def _run_parts(self, parts: Sequence[tuple[int, int]], inputs: Arrays, outputs: Arrays) -> None:
        """Run a batch in parts on graphs for exact numbers of samples."""
        spec, first = self._source.spec, 0
        for count, size in parts:
            rows = slice(first, first + count)
            given = {
                tensor.name: _filled(inputs[tensor.name][rows], size) if _batched(tensor) else inputs[tensor.name]
                for tensor in spec.inputs
            }
            wanted = {name: array[rows] for name, array in outputs.items()}
            if count == size:
                self._exact[size].run(given, wanted)
            else:
                room = {name: np.empty((size, *array.shape[1:]), array.dtype) for name, array in wanted.items()}
                self._exact[size].run(given, room)
                for name, array in wanted.items():
                    np.copyto(array, room[name][:count])
            first += count


def portions(count: int, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """How to run `count` samples on graphs for `sizes` samples: for each call how many of them, and the graph's size.

    A call is filled up with repeated samples where they make up no more than a quarter of it.
    """
    parts = []
    while count:
        larger = min((size for size in sizes if 3 * size <= 4 * count and size >= count), default=None)
        size = larger or max((size for size in sizes if size <= count), default=min(sizes))
        parts.append((min(count, size), size))
        count -= min(count, size)
    return tuple(parts)


def _batched(tensor: TensorSpec) -> bool:
    return bool(tensor.shape) and tensor.shape[0] == "B"


def _filled(array: Array, size: int) -> Array:
    """The array, with its last row repeated until it has `size` of them."""
    missing = size - len(array)
    return array if not missing else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
