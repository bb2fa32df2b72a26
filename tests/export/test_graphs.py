"""Every graph of a bundle against the torch module it came from, on every backend, at many shapes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import nn

from engine.backends import BackendOptions, Source, create
from engine.bundle import Bundle
from engine.manifest import ModuleName
from models.export import Parts
from models.export.graph import ModulePlan, TensorPlan, write_graph
from models.export.modules import plan_modules
from models.export.weights import read_header, save_weights
from models.hed import HED
from tests.export.tiny import RUNNABLE, tiny_bundle

MODULES: list[ModuleName] = [
    "text_encoder", "denoiser", "vae_decoder", "denoiser_control", "vae_encoder", "edge_detector"
]  # fmt: skip
# B, L, latent H and W: not square, not those traced with, and 1 where 1 is allowed.
SHAPES = [(1, 3, 4, 6), (3, 17, 8, 2), (2, 11, 2, 10), (1, 8, 8, 8)]


def random_inputs(parts: Parts, name: str, shape: tuple[int, int, int, int], seed: int) -> dict[str, np.ndarray]:
    """Inputs of the sizes and values that the module meets in use; every prompt has another length."""
    batch, length, height, width = shape
    generator = np.random.default_rng(seed)

    def normal(*size: int) -> np.ndarray:
        return generator.standard_normal(size, dtype=np.float32)

    position = normal(1, height * width // 4, parts.config.dit.width)
    mask = np.arange(length) < generator.integers(1, length + 1, (batch, 1))
    everything = {
        "ids": generator.integers(0, parts.config.text["vocab_size"], (batch, length)),
        "mask": mask,
        "latents": normal(batch, 4, height, width),
        "caption": normal(batch, length, parts.config.dit.width),
        "timestep": generator.integers(0, 1000, batch).astype(np.float32),
        "coefficients": normal(batch, 6),
        "noise": normal(batch, 4, height, width),
        "position": position,
        "resolution": generator.integers(64, 2048, (batch, 2)).astype(np.float32),
        "aspect_ratio": generator.uniform(0.25, 4, (batch, 1)).astype(np.float32),
        "control_latents": normal(batch, 4, height, width),
        "strength": generator.uniform(0, 2, batch).astype(np.float32),
        "image": generator.integers(0, 256, (batch, 8 * height, 8 * width, 3), dtype=np.uint8),
    }
    plan = next(plan for plan in plan_modules(parts) if plan.name == name)
    return {tensor.name: everything[tensor.name] for tensor in plan.inputs}


def source(bundle: Bundle, name: ModuleName) -> Source:
    """The module with ranges wide enough for the shapes tried here."""
    spec = bundle.module(name)
    anything = {symbol: size.model_copy(update={"min": 1, "max": 999, "multiple": 1})
                for symbol, size in bundle.manifest.dimensions.items()}  # fmt: skip
    return Source(bundle.path(spec.graph), spec, anything, bundle.digest(name))


def check_module(parts: Parts, folder: Path, backend: str, name: ModuleName) -> None:
    bundle = Bundle.load(folder)
    compiled = create(backend, BackendOptions(threads=1)).compile(source(bundle, name))
    plan = next(plan for plan in plan_modules(parts) if plan.name == name)
    for seed, shape in enumerate(SHAPES):
        inputs = random_inputs(parts, name, shape, seed)
        results = compiled.run(inputs)
        with torch.no_grad():
            expected = plan.module(**{key: torch.from_numpy(value) for key, value in inputs.items()})
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert list(results) == [tensor.name for tensor in plan.outputs]
        for result, reference in zip(results.values(), expected, strict=True):
            want = reference.numpy()
            assert result.dtype == want.dtype and result.shape == want.shape
            difference = np.abs(result.astype(np.float64) - want.astype(np.float64)).max()
            if want.dtype == np.uint8:
                assert difference <= 1
                assert np.mean(result != want) < 1e-3
            else:
                assert difference <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_agrees_with_torch(backend: str, name: ModuleName) -> None:
    check_module(*tiny_bundle(), backend, name)


@pytest.mark.parametrize("shape", [(1, 16, 24), (2, 40, 72)])
def test_hed_agrees_with_torch(hed: tuple[HED, Path], shape: tuple[int, int, int]) -> None:
    detector, folder = hed
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(folder / "edge_detector.onnx")
    compiled = openvino.Core().compile_model(folder / "edge_detector.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        expected = detector(torch.from_numpy(image)).numpy().astype(int)
    assert expected.std() > 2, "a flat map would prove nothing"
    for result in (session.run(None, {"image": image})[0], compiled({"image": image})["edges"]):
        assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.fixture(scope="module")
def hed(tmp_path_factory: pytest.TempPathFactory) -> tuple[HED, Path]:
    """The real model's edge detector with random weights, exported."""
    folder = tmp_path_factory.mktemp("hed")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = HED().eval().requires_grad_(False)
        for parameter in detector.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            parameter.copy_((parameter / 32 if parameter.shape[0] == 1 else parameter).half())
    image = TensorPlan("image", "uint8", ("B", "8*H", "8*W", 3))
    plan = ModulePlan("edge_detector", detector, (image,), (replace(image, name="edges"),))
    index = save_weights({"weights/edge_detector.safetensors": detector}, folder, torch.float16)
    write_graph(plan, index, {"B": 2, "H": 3, "W": 5}, folder)
    return detector, folder


def test_every_stored_weight_is_used_and_none_is_stored_twice() -> None:
    parts, folder = tiny_bundle()
    stored = {
        (file, tensor.offset): tensor.length
        for file in parts.weight_files()
        if (folder / file).exists()
        for tensor in read_header(folder / file, file).values()
    }
    used = set()
    for path in sorted(folder.glob("*.onnx")):
        assert path.stat().st_size < 200_000
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                key = place["location"], int(place["offset"])
                assert stored[key] == int(place["length"])
                assert tensor.data_type == onnx.TensorProto.FLOAT16
                used.add(key)
            else:
                assert len(tensor.raw_data) < 4096
    assert used == set(stored)
    numbers = sum(tensor.numel() for part in parts.weight_files().values() for tensor in set(part.parameters()))
    assert sum(stored.values()) == 2 * numbers


def test_the_two_denoisers_share_the_base() -> None:
    _, folder = tiny_bundle()
    manifest = Bundle.load(folder).manifest
    assert manifest.modules["denoiser"].weights == ("weights/dit.safetensors",)
    assert manifest.modules["denoiser_control"].weights == (
        "weights/controlnet.safetensors",
        "weights/dit.safetensors",
    )


def test_graphs_tell_nothing_of_the_machine_that_made_them() -> None:
    _, folder = tiny_bundle()
    for path in folder.glob("*.onnx"):
        content = path.read_bytes()
        assert b".py" not in content
        assert str(Path.cwd()).encode() not in content
        assert b"stack_trace" not in content
