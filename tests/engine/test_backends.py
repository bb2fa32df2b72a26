"""The adapters' contract: checks of names, types and shapes; outputs in the caller's arrays; a cache never trusted."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest

from engine.backends import BackendOptions, CompileError, ShapeError, Source, create
from engine.backends.base import prepare
from engine.backends.cache import BlobCache
from engine.bundle import Bundle
from engine.manifest import ModuleName
from tests.export.tiny import RUNNABLE, tiny_bundle


def source(name: ModuleName = "vae_decoder") -> Source:
    bundle = Bundle.load(tiny_bundle()[1])
    spec = bundle.module(name)
    return Source(bundle.path(spec.graph), spec, bundle.manifest.dimensions, bundle.digest(name))


def latents(batch: int = 1, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 4, height, width), dtype=np.float32)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({}, "latents: input of vae_decoder.onnx is missing"),
        ({"latents": latents(), "extra": latents()}, "extra: not an input"),
        ({"latents": latents().astype(np.float64)}, "float64"),
        ({"latents": latents()[0]}, "latents"),
        ({"latents": latents(5)}, "does not fit"),
        ({"latents": latents(0)}, "does not fit"),
        ({"latents": latents(1, 7)}, "does not fit"),
        ({"latents": latents(1, 10)}, "does not fit"),
        ({"latents": latents()[:, :3]}, "does not fit"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_the_tensor_named(inputs: dict[str, np.ndarray], problem: str) -> None:
    with pytest.raises(ShapeError, match=problem):
        prepare(source(), inputs)


def test_one_symbol_has_one_value() -> None:
    inputs = {"ids": np.zeros((2, 8), np.int64), "mask": np.ones((2, 16), np.bool_)}
    with pytest.raises(ShapeError, match="mask"):
        prepare(source("text_encoder"), inputs)


@pytest.mark.parametrize("backend", RUNNABLE)
def test_results_go_into_the_callers_arrays_and_do_not_change_later(backend: str) -> None:
    module = create(backend, BackendOptions(threads=1)).compile(source())
    first = module.run({"latents": latents()})["image"]
    kept = first.copy()
    given = np.zeros((2, 64, 64, 3), np.uint8)
    strided = np.asfortranarray(latents(2))
    assert module.run({"latents": strided}, {"image": given})["image"] is given
    assert given.any()
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(module.run({"latents": latents()})["image"], kept)
    with pytest.raises(ShapeError, match="image: output"):
        module.run({"latents": latents()}, {"image": given})


@pytest.mark.parametrize("backend", RUNNABLE)
def test_inputs_of_former_calls_leave_no_trace(backend: str) -> None:
    """Whatever came before: the same array, another of its shape, another shape, one that nobody may write to."""
    adapter = create(backend, BackendOptions(threads=1))
    rng = np.random.default_rng(11)
    arrays = [rng.standard_normal((count, 4, 8, 8), dtype=np.float32) for count in (1, 1, 2, 1)]
    expected = [adapter.compile(source()).run({"latents": array})["image"] for array in arrays]
    for fixed in arrays[::2]:
        fixed.setflags(write=False)
    module = adapter.compile(source())
    for place in (0, 0, 1, 0, 2, 0, 3, 1, 2, 2, 3):
        np.testing.assert_array_equal(module.run({"latents": arrays[place]})["image"], expected[place])
    arrays[1][:] = arrays[3]
    np.testing.assert_array_equal(module.run({"latents": arrays[1]})["image"], expected[3])


@pytest.mark.parametrize("backend", RUNNABLE)
def test_a_graph_that_is_no_graph_is_refused_by_name(tmp_path: Path, backend: str) -> None:
    graph = tmp_path / "broken.onnx"
    graph.write_bytes(b"not a graph")
    with pytest.raises(CompileError, match=r"broken\.onnx"):
        create(backend, BackendOptions()).compile(replace(source(), graph=graph))


def test_an_unknown_backend_and_an_impossible_option_are_refused() -> None:
    with pytest.raises(ValueError, match="'abacus' is not one of openvino, onnxruntime, torch, tensorrt, tensorrt_rtx"):
        create("abacus", BackendOptions())
    with pytest.raises(ValueError, match="bf16"):
        create("onnxruntime", BackendOptions(precision="bf16"))


def test_a_compiled_module_is_kept_and_a_damaged_one_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    options = BackendOptions(threads=1, cache=tmp_path / "cache")

    def run(options: BackendOptions = options, module: Source | None = None) -> np.ndarray:
        return create("openvino", options).compile(module or source()).run({"latents": latents()})["image"]

    expected = run()
    caplog.clear()  # the module itself may just have been exported, which is not silent
    (blob,) = (tmp_path / "cache").iterdir()
    sound = blob.read_bytes()
    stamp = blob.stat().st_mtime_ns
    np.testing.assert_array_equal(run(), expected)
    assert blob.stat().st_mtime_ns == stamp and not caplog.records

    changed = sound[:100] + bytes([sound[100] ^ 1]) + sound[101:]
    for damage in (changed, sound[:-1], sound[:10], b""):
        blob.write_bytes(damage)
        np.testing.assert_array_equal(run(), expected)
        assert "damaged" in caplog.text
        caplog.clear()
        assert len(blob.read_bytes()) > 0.9 * len(sound)  # names in it are numbered, so its length varies a little

    run(replace(options, precision="bf16"))
    run(module=replace(source(), digest="another"))
    assert len(list((tmp_path / "cache").iterdir())) == 3, "precision and digest are part of the key"


def test_a_blob_that_is_whole_but_foreign_is_rebuilt(tmp_path: Path) -> None:
    options = BackendOptions(threads=1, cache=tmp_path)
    create("openvino", options).compile(source())
    (blob,) = tmp_path.iterdir()
    BlobCache(tmp_path).write(blob, b"whole, but nothing that OpenVINO knows")
    module = create("openvino", options).compile(source())
    assert module.run({"latents": latents()})["image"].any()
    assert len(blob.read_bytes()) > 1000


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    module = create("openvino", BackendOptions(cache=tmp_path / "file" / "cache")).compile(source())
    assert module.run({"latents": latents()})["image"].any()
    assert "cannot be kept" in caplog.text


def test_importing_the_engine_imports_neither_torch_nor_a_runtime() -> None:
    program = (
        "import sys, engine, engine.backends\n"
        "heavy = {'torch', 'openvino', 'onnxruntime', 'onnx', 'transformers', 'diffusers', 'models'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ("CUDA", r"no CUDAExecutionProvider \(it has .*CPUExecutionProvider.*\); install onnxruntime-gpu in its place"),
        ("CUDA:1", "no CUDAExecutionProvider"),
        ("CUDA:one", r"'CUDA:one' is not CPU, CUDA or CUDA:<number>"),
        ("CPU:1", "is not CPU"),
        ("GPU", "is not CPU"),
    ],
)
def test_onnxruntime_says_what_a_device_lacks(device: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        create("onnxruntime", BackendOptions(device=device))


def test_openvino_says_which_devices_there_are() -> None:
    with pytest.raises(ValueError, match=r"device TPU: OpenVINO finds .*CPU.* only"):
        create("openvino", BackendOptions(device="TPU"))


def test_openvino_warns_of_a_precision_exactly_where_it_does_not_use_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    create("openvino", BackendOptions())
    assert not caplog.records
    create("openvino", BackendOptions(precision="bf16"))
    compiled = openvino.Core().compile_model(source().graph, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert used in ("bf16", "f32")
    assert ("no arithmetic in bf16" in caplog.text) is (used == "f32")
