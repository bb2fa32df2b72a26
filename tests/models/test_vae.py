"""VAE halves against diffusers' AutoencoderKL and its image processor."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor

from models.config import LatentConfig
from models.vae import VaeDecoder, VaeEncoder
from tests.models.reference import assert_close, random_vae, randomise

SHIFTED = LatentConfig(mean=(0.4, -1.0, 0.0, 2.0), std=(0.5, 3.0, 1.0, 2.0))
STABLE_DIFFUSION = LatentConfig(mean=(0.0,) * 4, std=(1 / 0.18215,) * 4)


@pytest.mark.parametrize("latent", [SHIFTED, STABLE_DIFFUSION], ids=["shifted", "stable-diffusion"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 10)])
def test_decoding_equals_diffusers(latent: LatentConfig, height: int, width: int) -> None:
    vae = random_vae()
    latents = torch.randn(2, 4, height, width)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (latent.mean, latent.std))
    decoded = vae.decode(latents * std + mean).sample
    expected = (VaeImageProcessor().postprocess(decoded, output_type="np") * 255).round().astype(np.int16)
    ours = VaeDecoder(vae, latent)(latents)
    assert ours.dtype == torch.uint8
    assert ours.shape == (2, 8 * height, 8 * width, 3)
    assert np.abs(ours.numpy().astype(np.int16) - expected).max() <= 1
    assert ((expected > 0) & (expected < 255)).mean() > 0.2, "a saturated picture proves nothing"


@pytest.mark.parametrize("latent", [SHIFTED, STABLE_DIFFUSION], ids=["shifted", "stable-diffusion"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 72)])
def test_encoding_equals_diffusers(latent: LatentConfig, height: int, width: int) -> None:
    vae = random_vae()
    image = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (latent.mean, latent.std))
    raw = vae.encode(image.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    assert_close(VaeEncoder(vae, latent)(image), (raw - mean) / std)


def test_both_halves_together_have_the_names_of_the_whole() -> None:
    vae = random_vae()
    names = {*VaeDecoder(vae, SHIFTED).state_dict(), *VaeEncoder(vae, SHIFTED).state_dict()}
    assert names == set(vae.state_dict())


def test_a_vae_without_the_outer_convolutions() -> None:
    config = {**random_vae().config, "use_quant_conv": False, "use_post_quant_conv": False}
    vae = randomise(AutoencoderKL.from_config(config))
    latents = torch.randn(1, 4, 4, 4)
    decoded = vae.decode(latents).sample
    unit = LatentConfig(mean=(0.0,) * 4, std=(1.0,) * 4)
    ours = VaeDecoder(vae, unit)(latents).permute(0, 3, 1, 2)
    assert (ours - (decoded * 127.5 + 127.5).clamp(0, 255)).abs().max() <= 1
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    expected = vae.encode(image.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    assert_close(VaeEncoder(vae, unit)(image), expected)
