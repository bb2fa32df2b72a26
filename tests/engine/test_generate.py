"""Whole requests: against a loop in torch with the same noise, alone and in company, and at every option."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from engine import noise
from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.generate import Generator
from engine.request import GenerateRequest, InvalidRequest
from models.consistency import NoiseSchedule, consistency_step
from models.controlnet import ControlledDiT
from models.export import Parts
from models.export.graph import write_graph
from models.export.modules import plan_modules
from models.export.weights import save_weights
from models.positions import sincos_positions
from models.vae import VaeDecoder, VaeEncoder
from tests.export.tiny import RUNNABLE, tiny_bundle, tiny_parts

PICTURE = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
PLAIN = GenerateRequest("a red apple", seed=7, steps=4)
WIDE = GenerateRequest("quick fox", seed=2**63 - 1, steps=3, width=96, height=48)
TRACED = GenerateRequest("a blue dog", seed=1, steps=2, control=PICTURE, control_kind="picture", strength=1.5)
DRAWN = GenerateRequest("lazy", seed=0, steps=8, control=PICTURE, control_kind="edges", strength=0.5)
SHORT = GenerateRequest("fox", seed=123, steps=1)
REQUESTS = {"plain": PLAIN, "wide": WIDE, "traced": TRACED, "drawn": DRAWN, "short": SHORT}


@pytest.fixture(scope="module", params=RUNNABLE)
def generator(request: pytest.FixtureRequest) -> Generator:
    return Generator(Bundle.load(tiny_bundle()[1]), create(request.param, BackendOptions(threads=1)))


@torch.no_grad()
def reference(parts: Parts, request: GenerateRequest) -> np.ndarray:
    """The request's picture by the torch modules, with no padding and no batch."""
    height, width = (request.height or 64) // 8, (request.width or 64) // 8
    steps = request.steps or 4
    tokenizer = Tokenizer.from_file(str(tiny_bundle()[1] / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(request.prompt).ids])
    mask = torch.ones_like(ids, dtype=torch.bool)
    caption = parts.text_encoder(ids, mask)
    position = sincos_positions(height // 2, width // 2, 48, parts.config.dit.base_size, 1.0)
    arguments: dict[str, Any] = {"caption": caption, "mask": mask, "position": position}
    if parts.config.dit.size_conditions:
        arguments["resolution"] = torch.tensor([[8.0 * height, 8.0 * width]])
        arguments["aspect_ratio"] = torch.tensor([[height / width]])
    model: torch.nn.Module = parts.dit
    if request.control is not None:
        assert parts.controlnet is not None and parts.edge_detector is not None
        image = torch.from_numpy(request.control)[None]
        edges = parts.edge_detector(image) if request.control_kind == "picture" else image
        arguments["control_latents"] = VaeEncoder(parts.vae, parts.config.latent)(edges)
        arguments["strength"] = torch.tensor([request.strength])
        model = ControlledDiT(parts.dit, parts.controlnet)
    schedule = NoiseSchedule(parts.config.sampler)
    visited = schedule.timesteps(steps)
    latents = torch.from_numpy(noise.normal(request.seed, 0, (1, 4, height, width)))
    for index, t in enumerate(visited):
        following = visited[index + 1] if index + 1 < steps else None
        eps = model(latents, torch.tensor([float(t)]), **arguments)
        drawn = torch.from_numpy(noise.normal(request.seed, index + 1, (1, 4, height, width)))
        latents, _ = consistency_step(latents, eps, schedule.coefficients(t, following)[None], drawn)
    return VaeDecoder(parts.vae, parts.config.latent)(latents)[0].numpy()


def difference(first: np.ndarray, second: np.ndarray) -> int:
    """Largest difference of any channel of any pixel, of 255."""
    return int(np.abs(first.astype(np.int16) - second.astype(np.int16)).max())


@pytest.mark.parametrize("name", REQUESTS)
def test_a_picture_is_that_of_a_loop_in_torch(generator: Generator, name: str) -> None:
    request = REQUESTS[name]
    result = generator.generate(request)
    assert result.images.shape == (1, request.height or 64, request.width or 64, 3)
    assert result.images.std() > 5, "a flat picture would prove nothing"
    assert difference(result.images[0], reference(tiny_bundle()[0], request)) <= 1
    assert not result.truncated
    assert set(result.timings) == {"text", "control", "denoise", "decode"}
    assert all(seconds >= 0 for seconds in result.timings.values())


def test_company_in_a_batch_changes_nothing(generator: Generator) -> None:
    alone = {name: generator.generate(request).images[0] for name, request in REQUESTS.items()}
    together = generator.generate_batch([*REQUESTS.values(), PLAIN, replace(PLAIN, prompt=WIDE.prompt)])
    for name, picture in zip(REQUESTS, together, strict=False):
        assert difference(alone[name], picture) <= 1
    assert difference(alone["plain"], together[5]) <= 1
    assert difference(alone["plain"], together[6]) > 1


def test_the_same_request_gives_the_same_bytes(generator: Generator) -> None:
    for request in REQUESTS.values():
        np.testing.assert_array_equal(generator.generate(request).images, generator.generate(request).images)


def test_several_pictures_have_following_seeds(generator: Generator) -> None:
    pictures = generator.generate(replace(TRACED, seed=10), n=3).images
    assert pictures.shape == (3, 64, 64, 3)
    for index in range(3):
        assert difference(pictures[index], generator.generate(replace(TRACED, seed=10 + index)).images[0]) <= 1
    assert difference(pictures[0], pictures[1]) > 1


def test_prompt_seed_steps_control_and_strength_all_matter(generator: Generator) -> None:
    base = generator.generate(TRACED).images[0]
    for changes in (
        {"prompt": "lazy"},
        {"seed": 2},
        {"steps": 3},
        {"control": 255 - PICTURE // 2},
        {"control_kind": "edges"},
        {"strength": 0.5},
        {"control": None},
    ):
        assert difference(base, generator.generate(replace(TRACED, **changes)).images[0]) > 1


def test_no_strength_is_no_control(generator: Generator) -> None:
    without = generator.generate(replace(TRACED, control=None)).images[0]
    assert difference(generator.generate(replace(TRACED, strength=0)).images[0], without) <= 1


def test_more_pictures_than_a_batch_holds_are_made_in_turns(generator: Generator) -> None:
    pictures = generator.generate_batch([replace(SHORT, seed=seed) for seed in range(6)])
    for seed, picture in enumerate(pictures):
        assert difference(picture, generator.generate(replace(SHORT, seed=seed)).images[0]) <= 1
    assert generator.generate_batch([]) == []


def test_a_long_prompt_is_cut_and_says_so(generator: Generator) -> None:
    assert generator.generate(replace(SHORT, prompt="quick brown fox " * 60)).truncated


@pytest.mark.parametrize("n", [0, 5, -1, True, 1.0])
def test_a_number_of_pictures_beyond_the_batch_is_refused(generator: Generator, n: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"n is .*; allowed: an integer from 1 to 4"):
        generator.generate(PLAIN, n=n)


def test_seeds_that_would_run_past_the_last_are_refused(generator: Generator) -> None:
    with pytest.raises(InvalidRequest, match="seed"):
        generator.generate(WIDE, n=2)


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parts, Bundle]:
    """The tiny bundle with another denoiser, one that takes size conditions, and without control."""
    folder = tmp_path_factory.mktemp("conditioned") / "bundle"
    shutil.copytree(tiny_bundle()[1], folder)
    other = tiny_parts(size_conditions=True)
    parts = replace(tiny_bundle()[0], config=other.config, dit=other.dit, controlnet=None, edge_detector=None)
    plan = plan_modules(parts)[1]
    index = save_weights({"weights/dit.safetensors": parts.dit}, folder, torch.float16)
    write_graph(plan, index, {"B": 2, "L": 11, "H": 6, "W": 10, "N": 15}, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["size_conditions"] = True
    for name in ("denoiser_control", "vae_encoder", "edge_detector"):
        del manifest["modules"][name]
    manifest["modules"]["denoiser"]["inputs"] = [asdict(tensor) for tensor in plan.inputs]
    for name in ("denoiser.onnx", "weights/dit.safetensors"):
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return parts, Bundle.load(folder)


@pytest.mark.parametrize("backend", RUNNABLE)
def test_size_conditions_reach_the_model(conditioned: tuple[Parts, Bundle], backend: str) -> None:
    parts, bundle = conditioned
    generator = Generator(bundle, create(backend, BackendOptions(threads=1)))
    for request in (PLAIN, WIDE):
        assert difference(generator.generate(request).images[0], reference(parts, request)) <= 1
