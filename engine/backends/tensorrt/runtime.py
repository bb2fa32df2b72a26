"""Run compiled engines: device buffers that stay, one stream, and a CUDA graph for each shape that comes again."""

import logging
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.backends.base import (
    Array,
    Arrays,
    BackendOptions,
    CompileError,
    Precision,
    ShapeError,
    Source,
    known_again,
    prepare,
)
from engine.backends.cache import BlobCache
from engine.backends.tensorrt.device import Buffer, Device, NoDevice, TorchDevice
from engine.backends.tensorrt.package import Messages, PackageName, load_package, messages
from engine.backends.tensorrt.record import EngineRecord, EngineRefused, EngineStore
from engine.profiles import Range, ShapeProfile

log = logging.getLogger(__name__)

PRECISIONS: dict[Precision, str] = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
ENGINES = "engines"  # the folder in the bundle
MAX_SHAPES = 32  # contexts and graphs kept for each module; the least recently used goes


def tensorrt(options: BackendOptions) -> "TensorRTBackend":
    """The backend on the package `tensorrt`."""
    return TensorRTBackend("tensorrt", options)


def tensorrt_rtx(options: BackendOptions) -> "TensorRTBackend":
    """The backend on the package `tensorrt_rtx`."""
    return TensorRTBackend("tensorrt_rtx", options)


class Workspace:
    """Scratch memory that all engines share, since they run one after another. `generation` grows with each move."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffer: Buffer | None = None
        self.generation = 0

    def reserve(self, size: int) -> Buffer:
        """At least `size` bytes; they lie elsewhere than before if they had to grow."""
        if self._buffer is None or self._buffer.bytes < size:
            self._device.synchronize()
            self._buffer = None  # first, since there may be no room for both
            self._buffer = self._device.allocate(size)
            self.generation += 1
        return self._buffer


class TensorRTBackend:
    """Loads the engines that `pixart compile` left in the bundle's folder `engines`.

    It does not compile: that takes minutes and needs the export's packages.

    Raises:
        CompileError: the package is missing, or there is no GPU.
        ValueError: the device has another kind of name.
    """

    def __init__(self, package: PackageName, options: BackendOptions, device: Device | None = None) -> None:
        self.name = package
        self._package: PackageName = package
        self.precision: Precision = "f16" if options.precision == "auto" else options.precision
        self._precision = PRECISIONS[self.precision]
        self._cache = options.cache
        self._trt = load_package(package)
        try:
            self._device = device or TorchDevice(_device_index(options.device))
        except NoDevice as error:
            raise CompileError(
                f"{package} has nothing to run on: {error}; use the backend openvino on a CPU"
            ) from error
        logger, self._said = messages(package)
        self._runtime = self._trt.Runtime(logger)
        self._workspace = Workspace(self._device)

    def compile(self, source: Source) -> "TensorRTModule":
        """See `engine.backends.base.Backend.compile`; here it means to load."""
        folder = source.graph.parent / ENGINES
        store = EngineStore(folder)
        path = store.path(source.graph.stem, self._package, self._precision)
        module = source.graph.stem
        try:
            record = store.record(path)
            if record is None:
                raise EngineRefused(f"there is no engine {path.name} in {folder}")
            self._accept(record, source)
            content = store.read(path, record)
            self._said.clear()
            engine = self._runtime.deserialize_cuda_engine(content)
            if engine is None:
                raise EngineRefused(f"{path.name} is refused by {self._package} ({self._said.reason()})")
            self._check_tensors(engine, source, path)
        except EngineRefused as refusal:
            raise CompileError(f"{module}: {refusal}; {self._advice(source)}") from refusal
        kernels = _KernelCache(self._cache or folder, self._trt, path, record, self._device.name)
        return TensorRTModule(source, engine, record, self._trt, self._device, self._workspace, kernels, self._said)

    def _advice(self, source: Source) -> str:
        target = f" --target {self._device.capability}" if self._package == "tensorrt_rtx" else ""
        return (
            f"compile it: pixart compile --model {source.graph.parent} --backend {self._package} "
            f"--precision {self._precision}{target}"
        )

    def _accept(self, record: EngineRecord, source: Source) -> None:
        key, version = record.key, self._trt.__version__
        if (key.package, key.precision) != (self._package, self._precision):
            raise EngineRefused(f"the engine is for {key.package} in {key.precision}")
        if key.version != version:
            raise EngineRefused(f"the engine was made by {key.package} {key.version}, and {version} is installed")
        if self._device.capability not in key.targets:
            made = ", ".join(key.targets)
            raise EngineRefused(f"the engine is for {made}, and {self._device.name} is {self._device.capability}")
        if key.graph != source.digest:
            raise EngineRefused("the engine was made of another version of the module")

    def _check_tensors(self, engine: Any, source: Source, path: Path) -> None:
        """Names, directions and types, before anything is copied into memory by them."""
        trt = self._trt
        wanted = {tensor.name: (trt.TensorIOMode.INPUT, tensor.dtype) for tensor in source.spec.inputs}
        wanted |= {tensor.name: (trt.TensorIOMode.OUTPUT, tensor.dtype) for tensor in source.spec.outputs}
        found = {
            name: (engine.get_tensor_mode(name), np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name)
            for name in (engine.get_tensor_name(place) for place in range(engine.num_io_tensors))
        }
        if wanted != found:
            odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise EngineRefused(f"{path.name}: {odd[0]} is not as the manifest has it")


class _KernelCache:
    """The kernels that `tensorrt_rtx` finishes for this very GPU at first use, kept between starts."""

    def __init__(self, folder: Path, trt: Any, engine: Path, record: EngineRecord, device: str) -> None:
        self._blobs = BlobCache(folder)
        self._path = self._blobs.path(engine.stem, (record.sha256, trt.__version__, device))
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Let a context with this configuration use what is kept, and add to it."""
        if not hasattr(config, "create_runtime_cache"):
            return
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            kept = self._blobs.read(self._path)
            if kept is not None and not self._cache.deserialize(bytes(kept)):
                self._blobs.drop(self._path)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep what has been added."""
        if self._cache is not None:
            self._blobs.write(self._path, bytes(self._cache.serialize()))


class TensorRTModule:
    """An engine with its buffers. Inputs that the caller marked read-only are uploaded once, as they cannot change."""

    def __init__(
        self,
        source: Source,
        engine: Any,
        record: EngineRecord,
        trt: Any,
        device: Device,
        workspace: Workspace,
        kernels: _KernelCache,
        said: Messages,
    ) -> None:
        self._source = source
        self._engine = engine
        self._trt = trt
        self._device = device
        self._workspace = workspace
        self._kernels = kernels
        self._said = said
        self._profiles = [ShapeProfile(str(place), ranges) for place, ranges in enumerate(record.key.profiles)]
        self._buffers: dict[str, Buffer] = {}
        for tensor in (*source.spec.inputs, *source.spec.outputs):
            largest = max(math.prod(profile.shapes(tensor)[2]) for profile in self._profiles)
            self._buffers[tensor.name] = device.allocate(largest * np.dtype(tensor.dtype).itemsize)
        self._resident: dict[str, Array] = {}
        self._shapes: OrderedDict[tuple[tuple[int, ...], ...], _Shape] = OrderedDict()

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, Array]:
        """See `engine.backends.base.Module.run`."""
        ready, results = prepare(self._source, inputs, outputs)
        shape = self._shape(ready)
        for name, array in ready.items():
            self._upload(name, array)
        shape.launch()
        for name, array in results.items():
            self._device.download(self._buffers[name], array)
        self._device.synchronize()
        return results

    def _upload(self, name: str, array: Array) -> None:
        if self._resident.get(name) is array:
            return
        self._device.upload(self._buffers[name], array)
        if known_again(array):
            self._resident[name] = array
        else:
            self._resident.pop(name, None)

    def _shape(self, inputs: Mapping[str, Array]) -> "_Shape":
        key = tuple(array.shape for array in inputs.values())
        if key in self._shapes:
            self._shapes.move_to_end(key)
            return self._shapes[key]
        profile = self._profile(inputs)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._kernels.attach(config)
        context = self._engine.create_execution_context(config)
        if context is None:
            raise MemoryError(f"{self._source.graph.stem}: the GPU has no memory left for another shape")
        context.set_optimization_profile_async(profile, self._device.stream)
        for name, array in inputs.items():
            context.set_input_shape(name, array.shape)
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.pointer)
        made = _Shape(context, self._device, self._workspace, self._kernels.save, self._said)
        self._shapes[key] = made
        if len(self._shapes) > MAX_SHAPES:
            self._shapes.popitem(last=False)
        return made

    def _profile(self, inputs: Mapping[str, Array]) -> int:
        """The first profile that contains the inputs' shapes."""
        for place, profile in enumerate(self._profiles):
            for tensor in self._source.spec.inputs:
                low, _, high = profile.shapes(tensor)
                sizes = zip(low, inputs[tensor.name].shape, high, strict=True)
                if not all(least <= size <= most for least, size, most in sizes):
                    break
            else:
                return place
        known = "; ".join(_words(profile.ranges) for profile in self._profiles)
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise ShapeError(
            f"{self._source.graph.stem}: no profile of the engine contains {shapes}; it was compiled for {known}. "
            "Compile it again with --profile and --max-batch for what is needed"
        )


class _Shape:
    """A context for one shape: it runs once by itself, which finishes kernels, and from then on as a CUDA graph."""

    def __init__(
        self, context: Any, device: Device, workspace: Workspace, warm: Callable[[], None], said: Messages
    ) -> None:
        self._context = context
        self._device = device
        self._workspace = workspace
        self._scratch = int(context.update_device_memory_size_for_shapes())
        self._generation = -1
        self._graph: Callable[[], None] | None = None
        self._warm: Callable[[], None] | None = warm
        self._said = said

    def launch(self) -> None:
        """Put one execution on the stream."""
        scratch = self._workspace.reserve(self._scratch)
        if self._generation != self._workspace.generation:
            self._context.set_device_memory(scratch.pointer, scratch.bytes)
            self._generation = self._workspace.generation
            self._graph = None  # it was recorded with the scratch memory's old address
        if self._graph is not None:
            self._graph()
        elif self._warm is not None:
            self._enqueue()
            self._device.synchronize()
            self._warm()
            self._warm = None
        else:
            self._graph = self._capture()
            self._graph()

    def _capture(self) -> Callable[[], None]:
        # Only the package with kernels made at run time has the question; the other can always be captured.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._device.stream):
            return self._enqueue
        return self._device.capture(self._enqueue)

    def _enqueue(self) -> None:
        self._said.clear()
        if not self._context.execute_async_v3(self._device.stream):
            raise RuntimeError(f"TensorRT could not run the engine ({self._said.reason()})")


def _device_index(device: str) -> int:
    """Which GPU `cuda:1` means. The default of all backends, `CPU`, means the first."""
    match = re.fullmatch(r"cuda(?::(\d+))?|cpu", device, re.IGNORECASE)
    if match is None:
        raise ValueError(f"device {device!r} is not cuda or cuda:<number>, which TensorRT runs on")
    return int(match[1] or 0)


def _words(ranges: Mapping[str, Range]) -> str:
    return " ".join(
        f"{symbol} {low}" if low == high else f"{symbol} {low}-{high}" for symbol, (low, _, high) in ranges.items()
    )
