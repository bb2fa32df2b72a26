"""Graphs for exact numbers of samples: a batch, in whatever parts, is its samples, and what the graph means."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import sources
from engine.backends import BackendOptions, CompileError, Source, create
from engine.backends.base import Arrays, Module, Precision, shapes
from engine.backends.openvino import OpenVINOBackend
from engine.backends.openvino_module import portions
from engine.bundle import Bundle
from engine.manifest import ModuleName
from engine.sources import BATCHES, module_source
from server.settings import DEMO_BUNDLE
from tests.export.tiny import SIZES, tiny_bundle

OPTIONS = BackendOptions(threads=1)
TOLERANCE = 2e-5  # of the largest value: float32 in another order, through eight blocks
ALL: tuple[ModuleName, ...] = ("denoiser", "denoiser_control", "vae_decoder")


def demo(name: ModuleName) -> Source:
    return module_source(Bundle.load(DEMO_BUNDLE), name)


def random_inputs(source: Source, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs of these sizes, each sample its own; what has no batch is random too."""
    given: dict[str, np.ndarray] = {}
    for tensor in source.spec.inputs:
        shape = shapes([tensor], sizes)[tensor.name]
        if tensor.name == "mask":
            given["mask"] = np.arange(shape[1]) < rng.integers(3, shape[1] + 1, (shape[0], 1))
        elif tensor.name == "timestep":
            given["timestep"] = rng.integers(1, 1000, shape).astype(np.float32)
        elif tensor.dtype == "uint8":
            given[tensor.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            given[tensor.name] = rng.standard_normal(shape, dtype=np.float32)
    return given


def of_demo(batch: int) -> dict[str, int]:
    return {"B": batch, "L": 64, "H": 16, "W": 16, "N": 64}


def sample(source: Source, inputs: Arrays, index: int) -> dict[str, np.ndarray]:
    batched = {tensor.name for tensor in source.spec.inputs if tensor.shape[0] == "B"}
    return {name: array[index : index + 1] if name in batched else array for name, array in inputs.items()}


@given(st.integers(1, 40), st.sets(st.integers(1, 16), min_size=1))
def test_parts_make_up_the_whole_and_waste_little(count: int, sizes: set[int]) -> None:
    parts = portions(count, tuple(sizes))
    assert sum(taken for taken, _ in parts) == count
    for taken, size in parts:
        assert size in sizes and 1 <= taken <= size
        # More than a quarter is repeats only where no graph is small enough.
        assert 4 * taken >= 3 * size or taken < min(sizes)


def test_parts_of_the_usual_sizes() -> None:
    expected = {1: "1", 2: "2", 3: "3/4", 4: "4", 5: "4 1", 6: "4 2", 7: "4 3/4", 8: "4 4"}
    for count, parts in expected.items():
        said = " ".join(str(size) if taken == size else f"{taken}/{size}" for taken, size in portions(count, (1, 2, 4)))
        assert said == parts


@pytest.mark.parametrize("precision", ["f32", "auto"])
@pytest.mark.parametrize("name", ALL)
def test_every_batch_is_its_samples(name: ModuleName, precision: Precision, rng: np.random.Generator) -> None:
    """To the bit, and in whatever order batches come."""
    source = demo(name)
    module = create("openvino", replace(OPTIONS, precision=precision)).compile(source)
    inputs = random_inputs(source, of_demo(8), rng)
    alone = [module.run(sample(source, inputs, index)) for index in range(8)]
    for batch in rng.permutation(np.repeat(np.arange(1, 9), 2)):
        first = int(rng.integers(0, 9 - batch))
        given = {
            tensor.name: inputs[tensor.name][first : first + batch] if tensor.shape[0] == "B" else inputs[tensor.name]
            for tensor in source.spec.inputs
        }
        for output, array in module.run(given).items():
            assert array.std() > 0
            for index in range(batch):
                np.testing.assert_array_equal(array[index], alone[first + index][output][0])


@pytest.mark.parametrize("name", ALL)
def test_another_runtime_agrees(name: ModuleName, rng: np.random.Generator) -> None:
    source = demo(name)
    ours, theirs = (create(backend, OPTIONS).compile(source) for backend in ("openvino", "onnxruntime"))
    for batch in (1, 3, 6):
        agree(ours, theirs, random_inputs(source, of_demo(batch), rng))


def agree(ours: Module, theirs: Module, inputs: Arrays) -> None:
    found = ours.run(inputs)
    for output, expected in theirs.run(inputs).items():
        difference = np.abs(found[output].astype(np.float64) - expected)
        limit = 1 if expected.dtype == np.uint8 else TOLERANCE * np.abs(expected).max()
        assert difference.max() <= limit


def test_other_sizes_take_the_general_graph(rng: np.random.Generator) -> None:
    source = module_source(Bundle.load(tiny_bundle()[1]), "denoiser")
    assert source.usual is not None and not source.usual.always
    ours, theirs = (create(backend, OPTIONS).compile(source) for backend in ("openvino", "onnxruntime"))
    for width, height in (*SIZES, SIZES[0]):
        for length in (8, 24):
            h, w = height // 8, width // 8
            sizes = {"B": 2, "L": length, "H": h, "W": w, "N": h * w // 4}
            agree(ours, theirs, random_inputs(source, sizes, rng))


def test_a_graph_that_cannot_be_had_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rng: np.random.Generator
) -> None:
    caplog.set_level(logging.WARNING)
    source = demo("denoiser")
    inputs = random_inputs(source, of_demo(5), rng)
    expected = create("openvino", OPTIONS).compile(source).run(inputs)
    build: Callable[..., Any] = OpenVINOBackend._build

    def refuse(self: OpenVINOBackend, source: Source, batch: int | None) -> Any:
        built.append(batch)
        if batch == 4:
            raise CompileError("no memory")
        return build(self, source, batch)

    built: list[int | None] = []
    monkeypatch.setattr(OpenVINOBackend, "_build", refuse)
    found = create("openvino", OPTIONS).compile(source).run(inputs)
    assert "for exactly 4 samples: no memory" in caplog.text
    assert set(built) == {1, 2, 4}, "the others do for all batches, so memory is not spent on a general graph"
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(DEMO_BUNDLE)
    usual = {name: module_source(bundle, name).usual for name in bundle.manifest.modules}
    assert usual.pop("text_encoder") is None
    found = {name: each.batches for name, each in usual.items() if each is not None}
    assert found.pop("denoiser") == found.pop("denoiser_control") == BATCHES
    assert set(found.values()) == {(1,)}
    assert all(each is not None and each.always for each in usual.values())
    denoiser = module_source(bundle, "denoiser", (1,)).usual
    assert denoiser is not None and denoiser.batches == (1,)
    monkeypatch.setattr(sources, "MOST_WEIGHTS", 1024)
    assert module_source(bundle, "denoiser").usual is None
