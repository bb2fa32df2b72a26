"""A fake of what the TensorRT runtime asks of CUDA and the package. It needs no GPU, and proves nothing about one.

Its memory is numpy's, its stream runs at once, and an "engine" is a Python function. It is strict where CUDA would
misbehave in silence: addresses that were not allocated, scratch memory too small, shapes that were not set.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engine.backends.base import Array
from engine.manifest import ModuleSpec

Compute = Callable[[Mapping[str, Array]], dict[str, Array]]


class FakeBuffer:
    def __init__(self, pointer: int, size: int) -> None:
        self.pointer = pointer
        self.bytes = size
        self.memory = np.zeros(size, np.uint8)


class FakeDevice:
    name = "Fake GPU"
    capability = "sm80"
    stream = 7

    def __init__(self) -> None:
        self.buffers: dict[int, FakeBuffer] = {}
        self.uploads: list[int] = []  # pointers
        self.captures = 0
        self.replays = 0
        self.capturing = False
        self._pending: list[tuple[FakeBuffer, Array]] = []
        self._recorded: list[Callable[[], None]] = []

    def allocate(self, size: int) -> FakeBuffer:
        buffer = FakeBuffer(4096 + 256 * sum(-(-other.bytes // 256) + 1 for other in self.buffers.values()), size)
        self.buffers[buffer.pointer] = buffer
        return buffer

    def upload(self, buffer: Any, array: Array) -> None:
        assert not self.capturing
        buffer.memory[: array.nbytes] = array.reshape(-1).view(np.uint8)
        self.uploads.append(buffer.pointer)

    def download(self, buffer: Any, array: Array) -> None:
        self._pending.append((buffer, array))

    def synchronize(self) -> None:
        assert not self.capturing, "CUDA forbids this while a graph is captured"
        for buffer, array in self._pending:
            array.reshape(-1).view(np.uint8)[:] = buffer.memory[: array.nbytes]
        self._pending.clear()

    def enqueue(self, work: Callable[[], None]) -> None:
        """The stream: runs now, or is recorded."""
        if self.capturing:
            self._recorded.append(work)
        else:
            work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.capturing, self._recorded = True, []
        work()
        self.capturing = False
        self.captures += 1
        recorded = self._recorded

        def replay() -> None:
            self.replays += 1
            for item in recorded:
                item()

        return replay


class FakeKernels:
    """`IRuntimeCache`."""

    def __init__(self) -> None:
        self.content = b"fresh"

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"kernels"):
            return False
        self.content = content
        return True

    def serialize(self) -> bytes:
        return b"kernels" if self.content == b"fresh" else self.content + b"+"


class FakeConfig:
    """`IRuntimeConfig`."""

    def __init__(self) -> None:
        self.strategy: Any = None
        self.kernels: FakeKernels | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeKernels:
        return FakeKernels()

    def set_runtime_cache(self, kernels: FakeKernels) -> None:
        self.kernels = kernels


class FakeContext:
    """`IExecutionContext`."""

    def __init__(self, engine: "FakeEngine", config: FakeConfig) -> None:
        assert "USER_MANAGED" in str(config.strategy)
        self._engine = engine
        self.kernels = config.kernels
        self.profile = -1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == self._engine.device.stream
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        assert pointer in self._engine.device.buffers
        self._addresses[name] = pointer
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return sum(int(np.prod(shape)) for shape in self._shapes.values())

    def set_device_memory(self, pointer: int, size: int) -> None:
        assert self._engine.device.buffers[pointer].bytes >= size
        self._scratch = (pointer, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine.capturable

    def execute_async_v3(self, stream: int) -> bool:
        if self._engine.broken:
            self._engine.say("it is\nbroken")
            return False
        assert self.profile >= 0 and self._scratch[1] >= self.update_device_memory_size_for_shapes()
        shapes, scratch = dict(self._shapes), self._scratch
        self._engine.executions += 1
        self._engine.device.enqueue(lambda: self._compute(shapes, scratch))
        return True

    def _compute(self, shapes: Mapping[str, tuple[int, ...]], scratch: tuple[int, int]) -> None:
        device = self._engine.device
        assert scratch == self._scratch, "a graph was replayed whose scratch memory has moved"
        inputs = {}
        for tensor in self._engine.spec.inputs:
            memory = device.buffers[self._addresses[tensor.name]].memory
            count = int(np.prod(shapes[tensor.name])) * np.dtype(tensor.dtype).itemsize
            inputs[tensor.name] = memory[:count].view(tensor.dtype).reshape(shapes[tensor.name])
        for name, array in self._engine.compute(inputs).items():
            memory = device.buffers[self._addresses[name]].memory
            memory[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class FakeEngine:
    """`ICudaEngine`."""

    def __init__(self, trt: Any, device: FakeDevice, spec: ModuleSpec, compute: Compute) -> None:
        self._trt = trt
        self.device = device
        self.spec = spec
        self.compute = compute
        self.contexts: list[FakeContext] = []
        self.executions = 0
        self.broken = False
        self.say: Callable[[str], None] = lambda text: None  # an error, to the package's logger
        self.capturable = True
        self._tensors = [*spec.inputs, *spec.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, place: int) -> str:
        return self._tensors[place].name

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._trt.TensorIOMode
        return mode.INPUT if name in {tensor.name for tensor in self.spec.inputs} else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        dtype = next(tensor.dtype for tensor in self._tensors if tensor.name == name)
        return getattr(self._trt, dtype)

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig()

    def create_execution_context(self, config: FakeConfig) -> FakeContext:
        self.contexts.append(FakeContext(self, config))
        return self.contexts[-1]


class FakePackage:
    """The installed package with another `Runtime`, which takes engines from `engine` instead of from bytes."""

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self.engine: FakeEngine | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trt, name)

    def Runtime(self, logger: Any) -> "FakePackage":
        return self

    def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
        return self.engine
