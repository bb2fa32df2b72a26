"""Three independent readings of every graph agree: OpenVINO in float32, ONNX Runtime, and the torch interpreter."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.fullsize import full_config, meta_parts, random_sources, shorten
from engine.backends import Backend, BackendOptions, CompileError, Source, create
from engine.bundle import Bundle
from engine.manifest import DimensionRange, ModuleName, ModuleSpec, TensorSpec, parse_dimension

ZOO = Path(__file__).parents[2] / "models" / "zoo" / "emoji"
MODULES: list[ModuleName] = [
    "text_encoder", "denoiser", "vae_decoder", "denoiser_control", "vae_encoder", "edge_detector"
]  # fmt: skip
BACKENDS = ("openvino", "onnxruntime", "torch")

# Largest difference over largest value. float32 rounds to 6e-8; sums of some thousand terms, in another order on each
# backend, differ by some tens of that, and a chain of some tens of layers by a few times more. The largest that was
# met is 3e-6; a wrong epsilon, a swapped axis or a half-precision product would be above 1e-4.
TOLERANCE = 2e-5


def inputs(spec: ModuleSpec, sizes: dict[str, int], rng: np.random.Generator, vocabulary: int) -> dict[str, np.ndarray]:
    """Values as they are in use; the last prompt has half the tokens of the others."""
    found: dict[str, np.ndarray] = {}
    for tensor in spec.inputs:
        shape = [size if isinstance(size, int) else _value(size, sizes) for size in tensor.shape]
        if tensor.name == "mask":
            value: np.ndarray = np.ones(shape, np.bool_)
            value[-1, shape[1] // 2 :] = False
        elif tensor.name == "timestep":
            value = rng.integers(0, 1000, shape).astype(np.float32)
        elif tensor.name == "resolution":
            value = rng.integers(256, 1025, shape).astype(np.float32)
        elif tensor.dtype == "int64":
            value = rng.integers(0, vocabulary, shape)
        elif tensor.dtype == "uint8":
            value = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            value = rng.standard_normal(shape, dtype=np.float32)
        found[tensor.name] = value
    return found


def _value(dimension: str, sizes: dict[str, int]) -> int:
    factor, symbol = parse_dimension(dimension)
    return factor * sizes[symbol]


def check_agreement(source: Source, given: dict[str, np.ndarray]) -> None:
    results = {name: create(name, BackendOptions(threads=1)).compile(source).run(given) for name in BACKENDS}
    for tensor in source.spec.outputs:
        reference = results["torch"][tensor.name].astype(np.float64)
        assert reference.std() > 0, "a constant would prove nothing"
        for name in ("openvino", "onnxruntime"):
            difference = np.abs(results[name][tensor.name] - reference)
            if tensor.dtype == "uint8":
                # A value beside a half may be rounded to either side.
                assert difference.max() <= 1 and (difference > 0).mean() < 1e-3, name
            else:
                assert difference.max() <= TOLERANCE * np.abs(reference).max(), name


@pytest.mark.parametrize("name", MODULES)
def test_backends_agree_on_the_demo_model(name: ModuleName, rng: np.random.Generator) -> None:
    bundle = Bundle.load(ZOO)
    spec = bundle.module(name)
    source = Source(bundle.path(spec.graph), spec, bundle.manifest.dimensions, bundle.digest(name))
    vocabulary = bundle.manifest.model["text"]["vocab_size"]  # type: ignore[index, call-overload]
    check_agreement(source, inputs(spec, {"B": 2, "L": 16, "H": 16, "W": 16, "N": 64}, rng, int(vocabulary)))  # type: ignore[arg-type]


@cache
def slice_of_xl() -> dict[str, Source]:
    """Both denoisers of PixArt-XL/2 in full width, three blocks deep, and Stable Diffusion's autoencoder; random."""
    parts = meta_parts(shorten(full_config(1024), depth=3, control=2, layers=1))
    folder = Path(tempfile.mkdtemp(prefix="xl-slice-"))
    return random_sources(parts, folder, ["denoiser", "denoiser_control", "vae_decoder", "vae_encoder"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoiser", "denoiser_control", "vae_decoder", "vae_encoder"])
def test_backends_agree_on_a_slice_of_the_full_width(name: str, rng: np.random.Generator) -> None:
    source = slice_of_xl()[name]
    check_agreement(source, inputs(source.spec, {"B": 2, "L": 24, "H": 12, "W": 16, "N": 48}, rng, 1))


def small_source(folder: Path, nodes: list, arrays: dict[str, np.ndarray] | None = None) -> Source:
    """A graph from x [B, 4] to y [B, 4]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4]) for name in "xy")
    weights = [numpy_helper.from_array(array, name) for name, array in (arrays or {}).items()]
    model = helper.make_model(helper.make_graph(nodes, "small", [x], [y], weights))
    onnx.save(model, folder / "small.onnx")
    x_spec, y_spec = (TensorSpec(name=name, dtype="float32", shape=("B", 4)) for name in "xy")
    spec = ModuleSpec(graph="small.onnx", weights=(), inputs=(x_spec,), outputs=(y_spec,))
    return Source(folder / "small.onnx", spec, {"B": DimensionRange(min=1, max=8)}, "small")


def reference() -> Backend:
    return create("torch", BackendOptions())


@pytest.mark.parametrize(("start", "end", "step"), [(-1, -(2**63), -1), (2, 0, -1), (3, -5, -2), (1, 2**63 - 1, 2)])
def test_slices_run_both_ways(tmp_path: Path, start: int, end: int, step: int) -> None:
    bounds = {name: np.array([value], np.int64) for name, value in (("s", start), ("e", end), ("a", 1), ("d", step))}
    nodes = [
        helper.make_node("Slice", ["x", "s", "e", "a", "d"], ["part"]),
        helper.make_node("ReduceSum", ["part", "a"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["x", "sum"], ["y"]),
    ]
    source = small_source(tmp_path, nodes, bounds)
    given = {"x": np.random.default_rng(3).standard_normal((2, 4), dtype=np.float32)}
    ours, reference = (
        create(name, BackendOptions()).compile(source).run(given)["y"] for name in ("torch", "onnxruntime")
    )
    np.testing.assert_allclose(ours, reference, rtol=1e-6)


def test_the_interpreter_names_an_operator_that_it_does_not_know(tmp_path: Path) -> None:
    source = small_source(tmp_path, [helper.make_node("Hardmax", ["x"], ["y"])])
    with pytest.raises(CompileError, match=r"small\.onnx: the torch backend has no operator ai\.onnx\.Hardmax"):
        reference().compile(source)


def test_the_interpreter_keeps_its_constants_between_calls(tmp_path: Path) -> None:
    """One is folded, one is read by the last node, and values die on the way: a second call gives the same."""
    nodes = [
        helper.make_node("Neg", ["two"], ["minus"]),
        helper.make_node("Mul", ["x", "minus"], ["a"]),
        helper.make_node("Sub", ["a", "two"], ["y"]),
    ]
    module = reference().compile(small_source(tmp_path, nodes, {"two": np.array([2.0], np.float32)}))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for _ in range(2):
        np.testing.assert_array_equal(module.run({"x": x})["y"], -2 * x - 2)


def test_the_interpreter_reads_weights_inside_the_folder_only_and_whole(tmp_path: Path) -> None:
    source = small_source(tmp_path, [helper.make_node("Mul", ["x", "w"], ["y"])], {"w": np.ones(4, np.float32)})
    model = onnx.load(source.graph)
    (weight,) = model.graph.initializer
    onnx.external_data_helper.set_external_data(weight, "weights.bin", offset=0, length=16)
    weight.data_location = TensorProto.EXTERNAL
    weight.ClearField("raw_data")
    source.graph.write_bytes(model.SerializeToString())
    (tmp_path / "weights.bin").write_bytes(np.full(4, 3, np.float32).tobytes())
    assert (reference().compile(source).run({"x": np.ones((1, 4), np.float32)})["y"] == 3).all()
    (tmp_path / "weights.bin").write_bytes(bytes(15))
    with pytest.raises(CompileError, match="ends before weight w does"):
        reference().compile(source)
    inner = tmp_path / "inner"
    inner.mkdir()
    weight.external_data[0].value = "../weights.bin"
    (inner / "small.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CompileError, match="outside the bundle"):
        reference().compile(replace(source, graph=inner / "small.onnx"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (BackendOptions(precision="bf16"), "own types"),
        (BackendOptions(device="TPU"), "is not CPU, CUDA"),
    ],
)
def test_the_interpreter_refuses_what_it_cannot_do(options: BackendOptions, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        create("torch", options)
