"""The transformer against diffusers, against its equations, and against itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import DiTConfig
from models.dit import DiT
from tests.models.literal import Literal, weights_of
from tests.models.reference import assert_close, diffusers_pair, dit_inputs, random_dit, samples


@pytest.mark.parametrize("size_conditions", [False, True], ids=["plain", "size-conditions"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 20), (22, 6), (2, 2)])
def test_equals_diffusers(tmp_path: Path, size_conditions: bool, height: int, width: int) -> None:
    theirs, ours, projection = diffusers_pair(tmp_path, use_additional_conditions=size_conditions)
    inputs = dit_inputs(ours.config, batch=3, height=height, width=width, tokens=7)
    states = torch.randn(3, 7, 32)
    inputs["caption"] = projection(states)
    sizes = {name: inputs.get(name) for name in ("resolution", "aspect_ratio")}
    expected = theirs(
        inputs["latents"],
        encoder_hidden_states=states,
        timestep=inputs["timestep"],
        added_cond_kwargs=sizes,
        encoder_attention_mask=inputs["mask"].long(),
    ).sample
    assert expected.shape[1] == 8
    assert_close(ours(**inputs), expected[:, :4])


@pytest.mark.parametrize(("sample_size", "scale"), [(128, None), (64, None), (32, 2), (16, 0.5)])
def test_equals_diffusers_at_other_interpolation_scales(tmp_path: Path, sample_size: int, scale: float | None) -> None:
    theirs, ours, projection = diffusers_pair(tmp_path, sample_size=sample_size, interpolation_scale=scale)
    assert ours.config.size_conditions == (sample_size == 128)
    inputs = dit_inputs(ours.config, batch=2, height=12, width=10, tokens=5)
    states = torch.randn(2, 5, 32)
    inputs["caption"] = projection(states)
    expected = theirs(
        inputs["latents"],
        encoder_hidden_states=states,
        timestep=inputs["timestep"],
        added_cond_kwargs={name: inputs.get(name) for name in ("resolution", "aspect_ratio")},
        encoder_attention_mask=inputs["mask"].long(),
    ).sample
    assert_close(ours(**inputs), expected[:, :4])


@pytest.mark.parametrize("size_conditions", [False, True], ids=["plain", "size-conditions"])
def test_equals_its_equations(size_conditions: bool) -> None:
    dit = random_dit(size_conditions=size_conditions)
    inputs = dit_inputs(dit.config, batch=3, height=4, width=6, tokens=5)
    literal = Literal(weights_of(dit), dit.config.heads, dit.config.depth, size_conditions=size_conditions)
    expected = []
    for one in samples(inputs):
        numbers = {name: value.numpy().astype(np.float64)[0] for name, value in one.items()}
        t, embedding = literal.conditions(
            float(numbers["timestep"]),
            numbers.get("resolution"),
            float(numbers["aspect_ratio"][0]) if size_conditions else None,
        )
        caption = numbers["caption"][numbers["mask"] == 1]
        expected.append(literal.base(numbers["latents"], numbers["position"], t, embedding, caption))
    assert_close(dit(**inputs), np.stack(expected))


@pytest.mark.parametrize("size_conditions", [False, True], ids=["plain", "size-conditions"])
def test_a_sample_does_not_depend_on_its_company(size_conditions: bool) -> None:
    dit = random_dit(size_conditions=size_conditions)
    inputs = dit_inputs(dit.config, batch=4, height=8, width=6, tokens=9)
    alone = torch.cat([dit(**one) for one in samples(inputs)])
    assert_close(dit(**inputs), alone, 1e-5)


def test_padded_tokens_may_be_trimmed_and_may_hold_anything() -> None:
    dit = random_dit()
    inputs = dit_inputs(dit.config, batch=3, height=8, width=8, tokens=12)
    inputs["mask"] = torch.arange(12)[None] < torch.tensor([[7], [3], [1]])
    whole = dit(**inputs)
    trimmed = dit(**{**inputs, "caption": inputs["caption"][:, :7], "mask": inputs["mask"][:, :7]})
    assert_close(trimmed, whole, 1e-6)
    inputs["caption"] = torch.where(inputs["mask"][..., None], inputs["caption"], 100.0 * torch.randn(3, 12, 24))
    assert_close(dit(**inputs), whole, 1e-6)


def test_a_fully_masked_caption_gives_numbers() -> None:
    dit = random_dit()
    inputs = dit_inputs(dit.config, batch=2, height=4, width=4, tokens=3)
    inputs["mask"][1] = False
    assert dit(**inputs).isfinite().all()


def test_integer_masks_and_fractional_timesteps_are_understood() -> None:
    dit = random_dit()
    inputs = dit_inputs(dit.config, batch=2, height=4, width=4, tokens=6)
    expected = dit(**inputs)
    again = dit(**{**inputs, "mask": inputs["mask"].long(), "timestep": inputs["timestep"].double()})
    assert torch.equal(again, expected)


def test_bfloat16_autocast_stays_near_float32_and_every_parameter_learns() -> None:
    dit = random_dit().requires_grad_(True).train()
    inputs = dit_inputs(dit.config, batch=2, height=8, width=8, tokens=6)
    exact = dit(**inputs).detach()
    with torch.autocast("cpu", torch.bfloat16):
        eps = dit(**inputs)
    assert_close(eps.float(), exact, 0.1)
    eps.float().square().mean().backward()
    for name, parameter in dit.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_new_model_predicts_zero_and_ignores_the_caption() -> None:
    dit = DiT(DiTConfig(sample_size=8, depth=2, width=24, heads=2, caption_channels=16)).eval()
    inputs = dit_inputs(dit.config, batch=2, height=8, width=8, tokens=6)
    assert dit(**inputs).abs().max() == 0
    assert dit.time_mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    torch.nn.init.normal_(dit.final.proj.weight)
    expected = dit(**inputs)
    assert torch.equal(dit(**{**inputs, "caption": torch.randn(2, 6, 24)}), expected)


def test_missing_size_conditions_are_an_error() -> None:
    dit = random_dit(size_conditions=True)
    inputs = dit_inputs(dit.config, batch=2, height=4, width=4, tokens=6)
    del inputs["aspect_ratio"]
    with pytest.raises(ValueError, match="aspect_ratio"):
        dit(**inputs)
