"""OpenVINO: the default on a CPU."""

import io
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from engine.backends.base import BackendOptions, CompileError, Precision, Source, shapes
from engine.backends.cache import BlobCache
from engine.backends.openvino_module import Graph, OpenVINOModule

log = logging.getLogger(__name__)

COMPILING = 2  # at the same time; each takes about one core, and several times a module's weights in memory


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

    @property
    def kept(self) -> Mapping[Path, bool]:
        """See `engine.backends.base.Keeping`."""
        return self._cache.kept if self._cache else {}

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
        """See `engine.backends.base.Backend.compile`.

        A graph for exact sizes is faster than one for ranges: OpenVINO fuses more of it, and prepares no operation anew
        when the number of samples changes. Of the demo model it saves 10 to 30 % of a call.
        """
        exact = self._exact(source)
        module = OpenVINOModule(source, exact, lambda: self._graph(source, None))
        if not exact or (source.usual is not None and not source.usual.always):
            _ = module.general  # now, because a call will need it
        return module

    def _exact(self, source: Source) -> dict[int, Graph]:
        """Graphs for the usual sizes, by their number of samples; without one that cannot be had (for memory, say)."""
        if source.usual is None:
            return {}

        def graph(batch: int) -> Graph | None:
            try:
                return self._graph(source, batch)
            except (CompileError, RuntimeError, MemoryError) as error:
                log.warning("%s for exactly %d samples: %s", source.graph.name, batch, error)
                return None

        with ThreadPoolExecutor(COMPILING) as threads:
            graphs = threads.map(graph, source.usual.batches)
        return {batch: graph for batch, graph in zip(source.usual.batches, graphs, strict=True) if graph}

    def _graph(self, source: Source, batch: int | None) -> Graph:
        """The graph for the usual sizes with `batch` samples, or for all ranges; from the cache if it is there."""
        if self._cache is None:
            return Graph(self._build(source, batch))
        config = self._config_of(source)
        name = source.graph.stem if batch is None else f"{source.graph.stem}-{batch}"
        path = self._cache.path(f"{self.name}-{name}", self._key(source, batch))
        blob = self._cache.read(path)
        if blob is not None:
            tensor = ov.Tensor(np.frombuffer(blob, np.uint8), shared_memory=True)
            try:
                return Graph(self._core.import_model(tensor, self._device, config), blob)
            except RuntimeError as error:
                log.warning("OpenVINO refuses %s (%s); compiling anew", path, error)
                self._cache.drop(path)
        compiled = self._build(source, batch)
        stream = io.BytesIO()
        compiled.export_model(stream)
        self._cache.write(path, stream.getvalue())
        return Graph(compiled)

    def _build(self, source: Source, batch: int | None) -> Any:
        try:
            model: Any = source.graph
            if batch is not None:
                model = self._core.read_model(source.graph)
                model.reshape(dict(shapes(source.spec.inputs, _exact_sizes(source, batch))))
            return self._core.compile_model(model, self._device, self._config_of(source))
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

    def _key(self, source: Source, batch: int | None) -> tuple[str, ...]:
        """All that a compiled module depends on; the device's full name stands for its instruction set."""
        device = str(self._core.get_property(self._device, "FULL_DEVICE_NAME"))
        settings = (f"{name}={value}" for name, value in sorted(self._config_of(source).items()))
        sizes = [] if batch is None else sorted(_exact_sizes(source, batch).items())
        return (source.digest, ov.get_version(), self._device, device, *settings, *(f"{a}={b}" for a, b in sizes))


def _exact_sizes(source: Source, batch: int) -> dict[str, int]:
    assert source.usual is not None
    return {"B": batch, **source.usual.dimensions}
