"""OpenVINO: the default on a CPU."""

import io
import logging
import os
from typing import Any

import numpy as np
import openvino as ov

from engine.backends.base import (
    Array,
    Arrays,
    BackendOptions,
    CompileError,
    Precision,
    Source,
    check,
    known_again,
    place,
)
from engine.backends.cache import BlobCache

log = logging.getLogger(__name__)


class OpenVINOModule:
    """A compiled module with one inference request.

    The request reads from arrays that stay bound to it while shapes stay the same, and writes to the caller's. To copy
    a step's inputs takes a tenth of the time of checking and binding them anew.
    """

    def __init__(self, source: Source, compiled: Any) -> None:
        self._source = source
        self._request = compiled.create_infer_request()
        self._bound: dict[str, Array] = {}
        self._kept: dict[str, Array] = {}  # inputs that nobody writes to, as they were given the last time
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the outputs

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, Array]:
        """See `engine.backends.base.Module.run`."""
        if not self._same_shapes(inputs):
            self._bind(inputs)
        for name, bound in self._bound.items():
            array = inputs[name]
            if self._kept.get(name) is not array:
                np.copyto(bound, array)
                if known_again(array):
                    self._kept[name] = array
                else:
                    self._kept.pop(name, None)
        results = place(self._source, self._shapes, outputs or {})
        for name, array in results.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._request.infer()
        return results

    def _same_shapes(self, inputs: Arrays) -> bool:
        """Whether the inputs are like those that were checked and bound."""
        bound = self._bound
        return len(inputs) == len(bound) and all(
            (kept := bound.get(name)) is not None and kept.shape == array.shape and kept.dtype == array.dtype
            for name, array in inputs.items()
        )

    def _bind(self, inputs: Arrays) -> None:
        self._shapes = check(self._source, inputs)
        self._kept.clear()
        self._bound = {name: np.empty(array.shape, array.dtype) for name, array in inputs.items()}
        for name, bound in self._bound.items():
            self._request.set_tensor(name, ov.Tensor(bound, shared_memory=True))


class OpenVINOBackend:
    """Compiles for one device; what it compiled is kept in a cache and loaded from there the next time.

    `device` is one of OpenVINO's names (CPU, GPU, GPU.1, NPU, AUTO). `threads` bounds the cores of one call, 0 takes
    them all. `streams` calls could run side by side, each with its share of the threads; a module here runs one call
    at a time, so more than one stream only takes threads away from it. `precision` is what float32 graphs are computed
    in; quantised parts stay in 8 bits. `auto` is bf16 where the processor has it, and elsewhere f32; other devices
    decide by themselves.

    Raises:
        ValueError: OpenVINO does not find the device.
    """

    name = "openvino"

    def __init__(self, options: BackendOptions) -> None:
        self._core = ov.Core()
        self._device = options.device
        self._check(options)
        self.precision: Precision = self._decide(options)
        self._config: dict[str, Any] = {
            **({} if self.precision == "auto" else {"INFERENCE_PRECISION_HINT": self.precision}),
            "NUM_STREAMS": options.streams,
            **({"INFERENCE_NUM_THREADS": options.threads} if options.threads else {}),
        }
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._one_thread = options.device == "CPU" and min(options.threads or cores, cores) == 1
        self._cache = BlobCache(options.cache) if options.cache else None

    def _check(self, options: BackendOptions) -> None:
        """Refuse a device that is not there; say when a precision will be slower than it sounds."""
        present = self._core.available_devices
        kind = options.device.partition(".")[0]
        if kind not in ("AUTO", "HETERO", "MULTI") and not any(device.startswith(kind) for device in present):
            raise ValueError(f"device {options.device}: OpenVINO finds {', '.join(present) or 'no device'} only")
        if options.device != "CPU" or options.precision in ("auto", "f32"):
            return
        if not self._computes_in(options.precision):
            log.warning(
                "this CPU has no arithmetic in %s, so OpenVINO computes in f32 instead; set f32 and save the rounding",
                options.precision,
            )

    def _decide(self, options: BackendOptions) -> Precision:
        if options.precision != "auto" or options.device != "CPU":
            return options.precision
        return "bf16" if self._computes_in("bf16") else "f32"

    def _computes_in(self, precision: Precision) -> bool:
        capability = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}[precision]
        return capability in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def compile(self, source: Source) -> OpenVINOModule:
        """See `engine.backends.base.Backend.compile`."""
        if self._cache is None:
            return OpenVINOModule(source, self._build(source))
        config = self._config_of(source)
        path = self._cache.path(f"{self.name}-{source.graph.stem}", self._key(source))
        if blob := self._cache.read(path):
            try:
                return OpenVINOModule(source, self._core.import_model(blob, self._device, config))
            except RuntimeError as error:
                log.warning("OpenVINO refuses %s (%s); compiling anew", path, error)
                self._cache.drop(path)
        compiled = self._build(source)
        stream = io.BytesIO()
        compiled.export_model(stream)
        self._cache.write(path, stream.getvalue())
        return OpenVINOModule(source, compiled)

    def _build(self, source: Source) -> Any:
        try:
            return self._core.compile_model(source.graph, self._device, self._config_of(source))
        except RuntimeError as error:
            raise CompileError(f"{source.graph.name}: OpenVINO cannot compile it ({error})") from error

    def _config_of(self, source: Source) -> dict[str, Any]:
        """How to compile this module.

        On processors with AMX, OpenVINO 2026.4 fuses T5's gated MLP in bf16 into a kernel that shares it among pairs of
        threads. With one thread it divides by zero and takes the process along, so the text encoder stays in f32.
        """
        if self._one_thread and source.graph.stem == "text_encoder":
            return self._config | {"INFERENCE_PRECISION_HINT": "f32"}
        return self._config

    def _key(self, source: Source) -> tuple[str, ...]:
        """All that a compiled module depends on; the device's full name stands for its instruction set."""
        device = str(self._core.get_property(self._device, "FULL_DEVICE_NAME"))
        settings = (f"{name}={value}" for name, value in sorted(self._config_of(source).items()))
        return (source.digest, ov.get_version(), self._device, device, *settings)
