"""TensorRT: the default on an NVIDIA GPU. One code path for the packages `tensorrt` and `tensorrt_rtx`.

`build.py` compiles, which needs no GPU with `tensorrt_rtx`; `runtime.py` runs what was compiled, which does.
"""

from engine.backends.tensorrt.runtime import TensorRTBackend, tensorrt, tensorrt_rtx

__all__ = ["TensorRTBackend", "tensorrt", "tensorrt_rtx"]
