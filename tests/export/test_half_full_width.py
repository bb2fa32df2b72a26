"""Half precision at PixArt-XL's full width, with values past float16's range; tolerances as in `test_half.py`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import T5Config

from benchmarks.fullsize import SD_VAE, T5_XXL
from engine.bundle import Bundle
from engine.sampler import schedule
from models.config import DiTConfig
from models.controlnet import ControlNetTransformer
from models.dit import DiT
from models.export.graph import ModulePlan, TensorPlan, write_graph
from models.export.half import typed_graph
from models.export.modules import ControlledDenoiser, Parts, plan_modules
from models.export.weights import save_weights
from models.text import TextEncoder
from models.vae import VaeDecoder
from tests.export.half import relative_error, session
from tests.export.tiny import VOCABULARY, tiny_config, tiny_parts

DEMO = Path("models/zoo/emoji")
ONE_LAYER = T5_XXL | {"num_layers": 1, "vocab_size": VOCABULARY}


def half_and_reference(
    plan: ModulePlan, weights: dict[str, nn.Module], folder: Path, inputs: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Results of the fp16 graph and of torch in float32."""
    index = save_weights(weights, folder, torch.float16)
    write_graph(plan, index, {"B": 2, "L": 11, "H": 6, "W": 10, "N": 15}, folder)
    result = session(typed_graph(folder / f"{plan.name}.onnx", "fp16"), folder).run(None, dict(inputs))[0]
    with torch.no_grad():
        expected = plan.module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    return result, (expected[0] if isinstance(expected, tuple) else expected).numpy()


def plan_of(name: str, parts: Parts) -> ModulePlan:
    return next(plan for plan in plan_modules(parts) if plan.name == name)


def round_to_half(module: nn.Module) -> None:
    for parameter in module.requires_grad_(False).parameters():
        parameter.copy_(parameter.half().float())


def inner_peak(module: nn.Module, part: Callable[[nn.Module], bool], run: Callable[[], object]) -> float:
    """The largest magnitude that any of the chosen parts puts out during `run`."""
    peaks: list[float] = []
    hooks = [
        inner.register_forward_hook(lambda _module, _inputs, output: peaks.append(float(output.detach().abs().max())))
        for inner in module.modules()
        if part(inner)
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return max(peaks)


def check_text_encoder(encoder: TextEncoder, parts: Parts, folder: Path, tokens: int) -> None:
    """With states past float16's range, as T5-XXL has them: plain half precision fails, the fp16 graph does not."""
    for block in encoder.t5.encoder.block:
        block.layer[1].DenseReluDense.wo.weight.mul_(6e4)
    round_to_half(encoder)
    generator = np.random.default_rng(0)
    ids = generator.integers(0, parts.config.text["vocab_size"], (2, tokens))
    inputs = {"ids": ids, "mask": np.arange(tokens) < np.array([[tokens // 2], [tokens]])}
    arguments = [torch.from_numpy(inputs["ids"]), torch.from_numpy(inputs["mask"])]
    products = [block.layer[1].DenseReluDense.wo for block in encoder.t5.encoder.block]
    peak = inner_peak(encoder, lambda inner: any(inner is wo for wo in products), lambda: encoder(*arguments))
    assert 65504 < peak < 64 * 65504
    result, expected = half_and_reference(
        plan_of("text_encoder", parts), {"weights/text_encoder.safetensors": encoder}, folder, inputs
    )
    real = inputs["mask"]
    assert relative_error(result[real], expected[real]) <= 2
    with torch.no_grad():
        plain = encoder.half()(*arguments).float().numpy()[real]  # transformers clips infinite states, so all is finite
    assert not np.isfinite(plain).all() or relative_error(plain, expected[real]) > 20


def check_vae_decoder(vae: AutoencoderKL, folder: Path, height: int) -> None:
    """With residuals past float16's range, as some autoencoders have them."""
    vae.decoder.conv_in.weight.mul_(1e5)
    for block in vae.decoder.up_blocks:
        block.resnets[0].conv2.weight.mul_(2e3)
    round_to_half(vae)
    decoder = VaeDecoder(vae, tiny_config().latent).eval()
    latents = np.random.default_rng(0).standard_normal((1, 4, height, height), dtype=np.float32)
    tensor = torch.from_numpy(latents)
    peak = inner_peak(decoder, lambda inner: isinstance(inner, nn.Conv2d), lambda: decoder(tensor))
    assert 65504 < peak < 64 * 65504, "plain half precision would hold this"
    plan = ModulePlan(
        "vae_decoder",
        decoder,
        (TensorPlan("latents", "float32", ("B", 4, "H", "W")),),
        (TensorPlan("image", "uint8", ("B", "8*H", "8*W", 3)),),
    )
    result, expected = half_and_reference(plan, {"weights/vae.safetensors": vae}, folder, {"latents": latents})
    assert expected.std() > 2, "a flat picture would prove nothing"
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= 1 and np.mean(difference) < 0.1


@pytest.mark.slow
def test_a_text_encoder_of_full_width(tmp_path: Path) -> None:
    parts = tiny_parts()
    encoder = TextEncoder(T5Config(**ONE_LAYER), 1152).requires_grad_(False).eval()
    for linear in (encoder.projection.fc1, encoder.projection.fc2):
        nn.init.normal_(linear.weight, std=0.3 / 64)
    config = replace(parts.config, text=ONE_LAYER, dit=DiTConfig(sample_size=128))
    check_text_encoder(encoder, replace(parts, config=config, text_encoder=encoder), tmp_path, 24)


@pytest.mark.slow
def test_an_autoencoder_of_full_width(tmp_path: Path) -> None:
    check_vae_decoder(AutoencoderKL(**SD_VAE).requires_grad_(False), tmp_path, 8)


@pytest.mark.slow
def test_a_slice_of_xl_with_control(tmp_path: Path) -> None:
    parts = tiny_parts()
    dit = DiT(DiTConfig(sample_size=64, depth=2))
    control = ControlNetTransformer(dit, 1)
    for part in (dit, control):
        for parameter in part.requires_grad_(False).parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        round_to_half(part.eval())
    parts = replace(
        parts, config=replace(parts.config, dit=dit.config, controlnet_depth=1), dit=dit, controlnet=control
    )
    plan = plan_of("denoiser_control", parts)
    assert isinstance(plan.module, ControlledDenoiser)
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    steps = schedule(Bundle.load(DEMO).manifest.sampler, 4)
    inputs = {
        "latents": normal(2, 4, 32, 48),
        "caption": 3 * normal(2, 24, 1152),
        "mask": np.arange(24) < np.array([[9], [24]]),
        "timestep": np.asarray(steps.timesteps[:2], np.float32),
        "coefficients": np.stack([steps.coefficients[0], steps.coefficients[1]]),
        "noise": normal(2, 4, 32, 48),
        "position": normal(1, 384, 1152),
        "control_latents": normal(2, 4, 32, 48),
        "strength": np.array([1.0, 0.5], np.float32),
    }
    weights: dict[str, nn.Module] = {"weights/dit.safetensors": dit, "weights/controlnet.safetensors": control}
    result, expected = half_and_reference(plan, weights, tmp_path, inputs)
    assert relative_error(result, expected) <= 2
