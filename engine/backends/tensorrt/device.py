"""The GPU as this backend needs it: memory, one stream, graphs. PyTorch is the allocator, loaded here and only here."""

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from engine.backends.base import Array


class NoDevice(Exception):
    """There is no GPU to run on; the message says what is missing."""


class Buffer(Protocol):
    """Memory on the device."""

    pointer: int
    bytes: int


class Device(Protocol):
    """What the runtime asks of CUDA. Everything happens on one stream, in order."""

    name: str
    capability: str  # such as `sm80`
    stream: int  # the stream's handle

    def allocate(self, size: int) -> Buffer:
        """At least `size` bytes of device memory, aligned to 256."""
        ...

    def upload(self, buffer: Buffer, array: Array) -> None:
        """Copy a C-contiguous array into a buffer."""
        ...

    def download(self, buffer: Buffer, array: Array) -> None:
        """Begin to copy a buffer into a C-contiguous array, which holds it after `synchronize`."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was asked for."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` puts on the stream, as a CUDA graph; the result launches it."""
        ...


def compute_capability(index: int = 0) -> str:
    """Such as `sm80`.

    Raises:
        NoDevice: there is no GPU, or PyTorch with CUDA is not installed.
    """
    major, minor = _cuda(index).cuda.get_device_capability(index)
    return f"sm{major}{minor}"


def _cuda(index: int) -> Any:
    """PyTorch, if it finds the GPU."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise NoDevice("PyTorch is not installed, which manages the GPU's memory") from error
    if torch.version.cuda is None:
        raise NoDevice(f"PyTorch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise NoDevice(f"there is no NVIDIA GPU {index} that PyTorch can use")
    return torch


class _TorchBuffer:
    """Device memory, and page-locked memory of the host through which it is filled and read."""

    def __init__(self, torch: Any, size: int, device: Any) -> None:
        self.bytes = size
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.pointer = int(self.memory.data_ptr())
        self._torch = torch
        self._host: Any = None

    @property
    def host(self) -> Any:
        """Made at its first use: scratch memory never needs it."""
        if self._host is None:
            self._host = self._torch.empty(self.bytes, dtype=self._torch.uint8, pin_memory=True)
        return self._host


class TorchDevice:
    """A GPU through PyTorch.

    Raises:
        NoDevice: see `compute_capability`.
    """

    def __init__(self, index: int = 0) -> None:
        self._torch = torch = _cuda(index)
        self.capability = compute_capability(index)
        self.name = str(torch.cuda.get_device_name(index))
        self._device = torch.device("cuda", index)
        torch.cuda.set_device(self._device)
        self._stream = torch.cuda.Stream(self._device)
        self.stream = int(self._stream.cuda_stream)
        self._downloads: list[tuple[Any, Array]] = []

    def allocate(self, size: int) -> _TorchBuffer:
        """See `Device.allocate`."""
        return _TorchBuffer(self._torch, max(1, size), self._device)

    def upload(self, buffer: Any, array: Array) -> None:
        """See `Device.upload`."""
        host = buffer.host[: array.nbytes]
        np.copyto(host.numpy(), array.reshape(-1).view(np.uint8))
        with self._torch.cuda.stream(self._stream):
            buffer.memory[: array.nbytes].copy_(host, non_blocking=True)

    def download(self, buffer: Any, array: Array) -> None:
        """See `Device.download`."""
        host = buffer.host[: array.nbytes]
        with self._torch.cuda.stream(self._stream):
            host.copy_(buffer.memory[: array.nbytes], non_blocking=True)
        self._downloads.append((host, array))

    def synchronize(self) -> None:
        """See `Device.synchronize`."""
        self._stream.synchronize()
        for host, array in self._downloads:
            np.copyto(array.reshape(-1).view(np.uint8), host.numpy())
        self._downloads.clear()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Device.capture`."""
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=self._stream):
            work()

        def replay() -> None:
            with self._torch.cuda.stream(self._stream):
                graph.replay()

        return replay
