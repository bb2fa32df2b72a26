"""Running a graph's fp16 variant with ONNX Runtime on the CPU, and how far its results are from others."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

ROUNDING = 2.0**-11


def session(model: onnx.ModelProto, folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of the expected values, in units of `ROUNDING`."""
    assert np.isfinite(result).all()
    want = expected.astype(np.float64)
    return float(np.sqrt(np.mean((result - want) ** 2) / np.mean(want**2)) / ROUNDING)
