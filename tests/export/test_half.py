"""The fp16 graphs' numbers, run by ONNX Runtime on the CPU, against the fp32 graphs and against torch.

Tolerances are in units of float16's rounding, 2^-11. A product in half precision rounds both operands and its result;
rounding errors of the layers are independent and meet in residual streams that are kept in single, so that the
relative error of a module stays near one unit however deep it is: at most 2 are allowed (root mean square). Pictures
are whole numbers, which hide most errors and magnify the rest; there at most one pixel value in ten may differ, by 1.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.backends import BackendOptions, Module, Precision, Source, create
from engine.backends.base import Arrays, prepare
from engine.bundle import Bundle
from engine.pipeline import Pipeline
from engine.request import GenerateRequest, validate
from models.export.half import SINGLE_OPERATIONS, GraphPrecision, typed_graph
from tests.export.half import relative_error, session

DEMO = Path("models/zoo/emoji")
UNITS = 2.0
LEVELS = 0.1
GRAPHS = ["text_encoder", "denoiser", "vae_decoder", "denoiser_control", "vae_encoder", "edge_detector"]


class Compared:
    """A module that runs both graphs, and gives back what the fp32 one says.

    It notes how far they are apart, as a share of what is allowed.
    """

    def __init__(self, source: Source, reference: Module, errors: dict[str, list[float]]) -> None:
        self._source, self._reference = source, reference
        self._half = session(typed_graph(source.graph, "fp16"), source.graph.parent)
        self._errors = errors.setdefault(source.graph.stem, [])

    def run(self, inputs: Arrays, outputs: Arrays | None = None) -> dict[str, np.ndarray]:
        expected = self._reference.run(inputs, outputs)
        ready, _ = prepare(self._source, inputs)
        for result, want in zip(self._half.run(list(expected), dict(ready)), expected.values(), strict=True):
            assert result.dtype == want.dtype and result.shape == want.shape
            if want.dtype == np.uint8:
                difference = np.abs(result.astype(int) - want)
                assert difference.max() <= 1
                self._errors.append(difference.mean() / LEVELS)
            else:
                self._errors.append(relative_error(result, want) / UNITS)
        return expected


class ComparedBackend:
    name = "compared"
    precision: Precision = "f32"

    def __init__(self) -> None:
        self.errors: dict[str, list[float]] = {}
        self._reference = create("onnxruntime", BackendOptions(threads=1))

    def compile(self, source: Source) -> Compared:
        return Compared(source, self._reference.compile(source), self.errors)


def test_every_module_of_the_demo_rounds_and_no_more_on_what_it_meets_in_use() -> None:
    bundle, backend = Bundle.load(DEMO), ComparedBackend()
    pipeline = Pipeline(bundle, backend)
    size = bundle.manifest.images.default
    control = np.zeros((size.height, size.width, 3), np.uint8)
    control[40:90, 40:90] = 200
    for request in (
        GenerateRequest("a red apple on a blue background", seed=1, control=control, control_kind="picture"),
        GenerateRequest("a cat", seed=2),
    ):
        job = validate(request, bundle.manifest)
        sample = pipeline.start(job, pipeline.encode_text(job.prompt), pipeline.encode_control(job))
        while not sample.finished:
            pipeline.denoise([sample])
        pipeline.decode([sample])
    print({name: [f"{error:.2f}" for error in errors] for name, errors in backend.errors.items()})
    assert set(backend.errors) == set(GRAPHS)
    for name, errors in backend.errors.items():
        assert errors and max(errors) <= 1, name
        assert name == "edge_detector" or max(errors) > 0, f"{name} was not rounded at all: is it half?"


def single_products(model: onnx.ModelProto) -> Counter[str]:
    """Products by whether they take half precision, as ONNX's own type inference sees it."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    found: Counter[str] = Counter()
    for node in inferred.node:
        kind = onnx.TensorProto.DataType.Name(types.get(node.output[0], 0))
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            found[kind] += 1
        elif node.op_type in SINGLE_OPERATIONS:
            assert kind in ("FLOAT", "INT64"), node
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_products_are_half_and_what_half_cannot_hold_is_single(name: str) -> None:
    found = single_products(typed_graph(DEMO / f"{name}.onnx", "fp16"))
    # The transformer's ends: patches (twice with control), final projection, timestep's two layers and modulation.
    ends = {"denoiser": 5, "denoiser_control": 6}.get(name, 0)
    assert found.pop("FLOAT", 0) == ends
    assert set(found) == {"FLOAT16"} and found["FLOAT16"] > 0
    if name != "edge_detector":
        assert single_products(typed_graph(DEMO / f"{name}.onnx", "bf16"))["BFLOAT16"] == found["FLOAT16"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_inputs_and_outputs_stay_and_uint8_is_at_the_border_alone(precision: GraphPrecision) -> None:
    for name in GRAPHS:
        before = onnx.load(DEMO / f"{name}.onnx", load_external_data=False)
        after = typed_graph(DEMO / f"{name}.onnx", precision)
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        inferred = onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True).graph
        inner = {value.type.tensor_type.elem_type for value in inferred.value_info}
        assert onnx.TensorProto.UINT8 not in inner
        assert len(after.SerializeToString()) < 400_000, "weights stay in their files"


def test_the_fp32_variant_computes_the_same_bits() -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 6, 8), dtype=np.float32)
    original = onnx.load(DEMO / "vae_decoder.onnx", load_external_data=False)
    variants = [original, typed_graph(DEMO / "vae_decoder.onnx", "fp32")]
    first, second = (session(model, DEMO).run(None, {"latents": latents})[0] for model in variants)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"half"])
def test_a_damaged_graph_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    sound = (DEMO / "vae_encoder.onnx").read_bytes()
    path = tmp_path / "vae_encoder.onnx"
    path.write_bytes(sound[: len(sound) // 2] if content == b"half" else content)
    with pytest.raises(ValueError, match=r"vae_encoder\.onnx: is damaged"):
        typed_graph(path, "fp16")


def enlarged(name: str, pattern: str, factor: float, folder: Path) -> Path:
    """The demo's graph `name` in `folder`, with the weights that `pattern` finds multiplied."""
    model = onnx.load(DEMO / f"{name}.onnx", load_external_data=False)
    content = {path.name: bytearray(path.read_bytes()) for path in (DEMO / "weights").iterdir()}
    hits = 0
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place and re.search(pattern, tensor.name):
            start, length = int(place["offset"]), int(place["length"])
            stored = content[Path(place["location"]).name]
            values = np.frombuffer(stored[start : start + length], np.float16).astype(np.float32) * factor
            assert np.abs(values).max() < 65504
            stored[start : start + length] = values.astype(np.float16).tobytes()
            hits += 1
    assert hits
    (folder / "weights").mkdir()
    for file, data in content.items():
        (folder / "weights" / file).write_bytes(data)
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return folder / f"{name}.onnx"


def run_both(path: Path, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
    """The fp16 graph's result, the fp32 graph's, and the largest result of a product in the latter."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Conv"):
            model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    expected, *products = session(model, path.parent).run(None, inputs)
    result = session(typed_graph(path, "fp16"), path.parent).run(None, inputs)[0]
    return result, expected, max(float(np.abs(product).max()) for product in products)


def test_text_states_past_the_range_of_float16_are_no_harm(tmp_path: Path) -> None:
    path = enlarged("text_encoder", r"\.wo\.weight$", 2.0**15, tmp_path)
    inputs = {"ids": np.random.default_rng(0).integers(0, 1000, (2, 24)), "mask": np.ones((2, 24), np.bool_)}
    result, expected, peak = run_both(path, inputs)
    assert 65504 < peak < 64 * 65504, "plain half precision would hold this"
    assert relative_error(result, expected) <= UNITS


def test_autoencoder_residuals_past_the_range_of_float16_are_no_harm(tmp_path: Path) -> None:
    path = enlarged("vae_decoder", r"decoder\.conv_in\.weight$|resnets\.0\.conv2\.weight$", 2.0**12, tmp_path)
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16), dtype=np.float32)
    result, expected, peak = run_both(path, {"latents": latents})
    assert 65504 < peak < 64 * 65504, "plain half precision would hold this"
    difference = np.abs(result.astype(int) - expected)
    assert expected.std() > 2 and difference.max() <= 1 and np.mean(difference) < 0.1
