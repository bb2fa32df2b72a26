"""The whole way from tokens to a picture against PixArtAlphaPipeline with LCMScheduler."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PixArtAlphaPipeline

from models.config import LatentConfig, PixArtConfig, SamplerConfig
from models.controlnet import ControlNetTransformer
from models.pipeline import Pipeline
from models.text import TextEncoder
from models.vae import VaeDecoder, VaeEncoder
from tests.models.reference import T5_TINY, assert_close, diffusers_pair, random_dit, random_vae, randomise
from tests.models.test_consistency import lcm_scheduler

SCALE = 0.18215
LATENT = LatentConfig(mean=(0.0,) * 4, std=(1 / SCALE,) * 4)


@pytest.mark.parametrize("sample_size", [16, 128], ids=["plain", "size-conditions"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_equals_diffusers(tmp_path: Path, seed: int, sample_size: int, steps: int) -> None:
    transformer, dit, projection = diffusers_pair(tmp_path, sample_size=sample_size)
    vae = random_vae()
    vae.register_to_config(scaling_factor=SCALE)
    text = randomise(TextEncoder(T5_TINY, dit.config.width))
    text.projection.load_state_dict(projection.state_dict())
    config = PixArtConfig(dit=dit.config, sampler=SamplerConfig(), latent=LATENT, text={}, vae={})
    ours = Pipeline(config, text, dit, vae)

    height, width = 48, 80
    ids = torch.randint(0, 100, (2, 9))
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])
    shape = (2, 4, height // 8, width // 8)
    start = torch.randn(shape)
    theirs = PixArtAlphaPipeline(None, None, vae, transformer, lcm_scheduler(config.sampler))
    theirs.set_progress_bar_config(disable=True)
    states = ours.text_encoder.t5(input_ids=ids, attention_mask=mask.long()).last_hidden_state

    def reference(kind: str) -> np.ndarray | torch.Tensor:
        return theirs(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=states,
            prompt_attention_mask=mask.long(),
            num_inference_steps=steps,
            guidance_scale=1.0,
            height=height,
            width=width,
            latents=start,
            generator=torch.Generator().manual_seed(seed),
            use_resolution_binning=False,
            output_type=kind,
        ).images

    generator = torch.Generator().manual_seed(seed)
    noise = torch.stack([start, *(torch.randn(shape, generator=generator) for _ in range(steps - 1))])
    assert_close(ours.denoise(ours.text_encoder(ids, mask), mask, noise), reference("latent"))
    pictures = ours(ids, mask, noise).numpy().astype(np.int16)
    assert np.abs(pictures - np.round(reference("np") * 255)).max() <= 1
    assert pictures.std() > 10, "a flat picture proves nothing"


def test_control_enters_as_latents_of_the_edges() -> None:
    dit = random_dit()
    controlnet = randomise(ControlNetTransformer(dit, 2))
    vae, text = random_vae(), randomise(TextEncoder(T5_TINY, dit.config.width))
    config = PixArtConfig(dit=dit.config, sampler=SamplerConfig(), latent=LATENT, text={}, vae={}, controlnet_depth=2)
    pipeline = Pipeline(config, text, dit, vae, controlnet)
    ids, mask, noise = torch.randint(0, 100, (2, 5)), torch.ones(2, 5), torch.randn(4, 2, 4, 8, 8)
    edges = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    strength = torch.tensor([0.7, 0.0])
    pictures = pipeline(ids, mask, noise, edges, strength)
    latents = pipeline.denoise(text(ids, mask), mask, noise, VaeEncoder(vae, LATENT)(edges), strength)
    assert torch.equal(pictures, VaeDecoder(vae, LATENT)(latents))
    plain = pipeline(ids, mask, noise)
    assert torch.equal(pictures[1], plain[1])
    assert not torch.equal(pictures[0], plain[0])


def test_control_without_a_branch_is_an_error() -> None:
    dit = random_dit()
    config = PixArtConfig(dit=dit.config, sampler=SamplerConfig(), latent=LATENT, text={}, vae={})
    pipeline = Pipeline(config, TextEncoder(T5_TINY, dit.config.width), dit, random_vae())
    with pytest.raises(ValueError, match="control branch"):
        pipeline.denoise(
            torch.randn(1, 3, 24), torch.ones(1, 3), torch.randn(1, 1, 4, 4, 4), torch.randn(1, 4, 4, 4), torch.ones(1)
        )
