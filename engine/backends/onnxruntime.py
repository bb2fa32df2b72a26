"""ONNX Runtime: portable."""

from typing import Any

import onnxruntime as ort

from engine.backends.base import Array, Arrays, BackendOptions, CompileError, Source, prepare


class OnnxRuntimeModule:
    """A session whose inputs and outputs are bound to the caller's own arrays."""

    def __init__(self, source: Source, session: Any) -> None:
        self._source = source
        self._session = session

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, Array]:
        """See `engine.backends.base.Module.run`."""
        ready, results = prepare(self._source, inputs, outputs)
        binding = self._session.io_binding()
        for name, array in ready.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in results.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return results


class OnnxRuntimeBackend:
    """Compiles for the CPU in float32; sessions start fast enough to need no cache.

    Raises:
        ValueError: another device or precision is asked for.
    """

    name = "onnxruntime"

    def __init__(self, options: BackendOptions) -> None:
        if (options.device, options.precision) != ("CPU", "f32"):
            raise ValueError(f"onnxruntime runs on CPU in f32 here, not on {options.device} in {options.precision}")
        self._settings = ort.SessionOptions()
        self._settings.intra_op_num_threads = options.threads

    def compile(self, source: Source) -> OnnxRuntimeModule:
        """See `engine.backends.base.Backend.compile`."""
        try:
            session = ort.InferenceSession(str(source.graph), self._settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # the package's exceptions have no common base of their own
            raise CompileError(f"{source.graph.name}: ONNX Runtime cannot compile it ({error})") from error
        return OnnxRuntimeModule(source, session)
