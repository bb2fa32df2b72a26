"""Both control branches against their equations, and what a strength of zero means."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.controlnet import ControlledDiT, ControlNetTransformer
from models.controlnet_unet import ControlNetUNet, UNetControlledDiT
from models.dit import DiT
from tests.models.literal import Literal, weights_of
from tests.models.reference import assert_close, dit_inputs, random_dit, randomise, samples

VARIANTS = {"transformer": (ControlNetTransformer, ControlledDiT), "unet": (ControlNetUNet, UNetControlledDiT)}
variants = pytest.mark.parametrize("variant", VARIANTS)


def controlled(variant: str, base: DiT, depth: int) -> ControlledDiT:
    branch, whole = VARIANTS[variant]
    return whole(base, randomise(branch(base, depth))).eval()


def control_inputs(base: DiT, batch: int, height: int, width: int, tokens: int) -> dict[str, Tensor]:
    inputs = dit_inputs(base.config, batch, height, width, tokens)
    return inputs | {
        "control_latents": torch.randn(batch, 4, height, width),
        "strength": torch.rand(batch) + 0.5,
    }


@pytest.mark.parametrize("size_conditions", [False, True], ids=["plain", "size-conditions"])
@pytest.mark.parametrize(
    ("variant", "blocks", "depth"),
    [
        ("transformer", 4, 1),
        ("transformer", 4, 2),
        ("transformer", 4, 3),
        ("unet", 4, 2),
        ("unet", 5, 2),
        ("unet", 4, 1),
    ],
)
def test_equals_its_equations(variant: str, blocks: int, depth: int, size_conditions: bool) -> None:
    base = random_dit(depth=blocks, size_conditions=size_conditions)
    model = controlled(variant, base, depth)
    inputs = control_inputs(base, batch=2, height=4, width=6, tokens=5)
    literal = Literal(
        weights_of(base),
        base.config.heads,
        blocks,
        size_conditions=size_conditions,
        branch=weights_of(model.controlnet),
    )
    run = literal.transformer_control if variant == "transformer" else literal.unet_control
    expected = []
    for one in samples(inputs):
        n = {name: value.numpy().astype(np.float64)[0] for name, value in one.items()}
        aspect_ratio = float(n["aspect_ratio"][0]) if size_conditions else None
        t, embedding = literal.conditions(float(n["timestep"]), n.get("resolution"), aspect_ratio)
        caption = n["caption"][n["mask"] == 1]
        strength = float(n["strength"])
        expected.append(run(n["latents"], n["position"], t, embedding, caption, n["control_latents"], strength))
    assert_close(model(**inputs), np.stack(expected))


@variants
def test_strength_zero_is_exactly_the_base(variant: str) -> None:
    base = random_dit()
    inputs = control_inputs(base, batch=3, height=8, width=6, tokens=5)
    inputs["strength"] = torch.zeros(3)
    plain = {name: value for name, value in inputs.items() if name not in ("control_latents", "strength")}
    assert torch.equal(controlled(variant, base, 2)(**inputs), base(**plain))


@variants
def test_a_new_branch_changes_nothing(variant: str) -> None:
    base = random_dit()
    inputs = control_inputs(base, batch=3, height=8, width=6, tokens=5)
    branch, whole = VARIANTS[variant]
    plain = {name: value for name, value in inputs.items() if name not in ("control_latents", "strength")}
    assert torch.equal(whole(base, branch(base, 2)).eval()(**inputs), base(**plain))


@variants
def test_a_sample_does_not_depend_on_its_company(variant: str) -> None:
    base = random_dit()
    model = controlled(variant, base, 2)
    inputs = control_inputs(base, batch=4, height=8, width=6, tokens=7)
    inputs["strength"][1] = 0.0
    assert_close(model(**inputs), torch.cat([model(**one) for one in samples(inputs)]), 1e-5)


@variants
def test_strength_and_control_both_matter(variant: str) -> None:
    base = random_dit()
    model = controlled(variant, base, 2)
    inputs = control_inputs(base, batch=1, height=8, width=8, tokens=5)
    first = model(**inputs)
    assert not torch.allclose(first, model(**{**inputs, "strength": 0.5 * inputs["strength"]}))
    assert not torch.allclose(first, model(**{**inputs, "control_latents": -inputs["control_latents"]}))


@variants
def test_copies_are_the_base_and_only_they_learn(variant: str) -> None:
    base = random_dit()
    branch, whole = VARIANTS[variant]
    control = branch(base, 2)
    for copy, block in zip(control.blocks, base.blocks[:2], strict=True):
        for name, parameter in copy.named_parameters():
            original = block.get_parameter(name)
            assert torch.equal(parameter, original) and parameter.data_ptr() != original.data_ptr()
    model = whole(base, control)
    inputs = control_inputs(base, batch=2, height=4, width=4, tokens=5)
    model(**inputs).square().mean().backward()
    assert all(parameter.grad is None for parameter in base.parameters())
    for name, parameter in control.after_proj.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("variant", "depth"), [("transformer", 0), ("transformer", 4), ("unet", 0), ("unet", 3)])
def test_impossible_depths_are_refused(variant: str, depth: int) -> None:
    with pytest.raises(ValueError, match=f"not {depth}"):
        VARIANTS[variant][0](random_dit(depth=4), depth)
