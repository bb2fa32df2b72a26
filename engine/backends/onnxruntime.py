"""ONNX Runtime: portable."""

from typing import Any

import onnxruntime as ort

from engine.backends.base import Array, Arrays, BackendOptions, CompileError, Precision, Source, prepare

_PROVIDERS = {
    "CPU": ("CPUExecutionProvider", "onnxruntime"),
    "CUDA": ("CUDAExecutionProvider", "onnxruntime-gpu"),
}


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
    """Runs on the CPU, or on an NVIDIA GPU with the package `onnxruntime-gpu`; `device` is CPU, CUDA or CUDA:<number>.

    Sessions start fast enough to need no cache. Arrays are in the host's memory either way.

    Raises:
        ValueError: another precision is asked for, or a device that the installed package does not serve.
    """

    name = "onnxruntime"
    precision: Precision = "f32"

    def __init__(self, options: BackendOptions) -> None:
        if options.precision not in ("auto", "f32"):
            raise ValueError(f"onnxruntime runs float32 graphs in f32, not in {options.precision}")
        self._provider = _provider(options.device)
        self._settings = ort.SessionOptions()
        self._settings.intra_op_num_threads = options.threads

    def compile(self, source: Source) -> OnnxRuntimeModule:
        """See `engine.backends.base.Backend.compile`."""
        providers = [self._provider]
        if self._provider[0] != "CPUExecutionProvider":
            providers.append(("CPUExecutionProvider", {}))  # for what the GPU's provider lacks
        try:
            session = ort.InferenceSession(str(source.graph), self._settings, providers=providers)
        except Exception as error:  # the package's exceptions have no common base of their own
            raise CompileError(f"{source.graph.name}: ONNX Runtime cannot compile it ({error})") from error
        # Without its CUDA libraries the runtime falls back to the CPU and says so in its log alone.
        if session.get_providers()[0] != self._provider[0]:
            raise CompileError(f"{source.graph.name}: ONNX Runtime could not start {self._provider[0]}; see its log")
        return OnnxRuntimeModule(source, session)


def _provider(device: str) -> tuple[str, dict[str, str]]:
    kind, _, number = device.upper().partition(":")
    if kind not in _PROVIDERS or not (number.isdecimal() or ":" not in device) or (kind == "CPU" and number):
        raise ValueError(f"device {device!r} is not CPU, CUDA or CUDA:<number>, which onnxruntime runs on here")
    provider, package = _PROVIDERS[kind]
    present = ort.get_available_providers()
    if provider not in present:
        raise ValueError(
            f"device {device}: the installed onnxruntime has no {provider} (it has {', '.join(present)}); "
            f"install {package} in its place"
        )
    return provider, {"device_id": number or "0"} if kind == "CUDA" else {}
