"""The autoencoder's start: group norms that let plain colour pass."""

from statistics import median

import pytest
import torch
from torch import Tensor, nn

from training.loop import LoopConfig
from training.vae import VaeConfig, build, soften_norms

LOOP = LoopConfig(steps=1, batch=1, lr=1e-3)


def norms_near_identity(vae: nn.Module, size: int) -> list[float]:
    """How far each group norm changes what varies within its groups, relative to it."""
    errors: list[float] = []

    def compare(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.GroupNorm)
        sign = 1.0 - 2.0 * (torch.arange(module.num_channels) % 2)
        sign = sign[None, :, None].unflatten(1, (module.num_groups, -1))

        def varying(values: Tensor) -> Tensor:
            """Less each group's mean and its part along the offsets: the norm may change these two."""
            grouped = values.flatten(2).unflatten(1, (module.num_groups, -1))  # attention flattens its pixels already
            grouped = grouped - grouped.mean(dim=(2, 3), keepdim=True)
            return grouped - sign * (grouped * sign).mean(dim=(2, 3), keepdim=True)

        signal, result = varying(inputs[0]), varying(output)
        errors.append(float((result - signal).square().mean().sqrt() / signal.square().mean().sqrt()))

    hooks = [m.register_forward_hook(compare) for m in vae.modules() if isinstance(m, nn.GroupNorm)]
    with torch.no_grad():
        vae(torch.rand(2, 3, size, size) * 2 - 1)
    for hook in hooks:
        hook.remove()
    return errors


@pytest.mark.parametrize("channels", [(8, 8, 8, 8), (16, 32, 64, 128)])
def test_every_norm_starts_near_the_identity(channels: tuple[int, ...]) -> None:
    vae = build(VaeConfig(LOOP, channels=channels, norm_groups=4), 32)
    soften_norms(vae)
    assert max(norms_near_identity(vae, 32)) < 0.25


def test_a_usual_start_is_not_near_the_identity() -> None:
    vae = build(VaeConfig(LOOP, channels=(8, 8, 8, 8), norm_groups=4), 32)
    # Nearly all of them; one may be near by chance.
    assert median(norms_near_identity(vae, 32)) > 0.5
