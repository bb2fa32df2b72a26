"""The peer: a bundle's own weights in diffusers' PixArtAlphaPipeline with LCMScheduler, run by PyTorch."""

import time
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, LCMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from transformers import PreTrainedTokenizerFast

from models.checkpoints import build, load_checkpoint
from models.checkpoints.naming import DIFFUSERS
from models.config import LatentConfig, PixArtConfig


@dataclass
class Peer:
    """The pipeline, and how to call it as the engine is called: one prompt, one picture, no guidance."""

    pipeline: PixArtAlphaPipeline
    config: PixArtConfig

    @torch.inference_mode()
    def generate(
        self, prompt: str, seed: int, steps: int, latents: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, float]]:
        """A picture uint8 [H, W, 3], and the seconds of each stage. `latents` [1, 4, h, w] replace the first noise."""
        pipeline = self.pipeline
        marks = [time.perf_counter()]
        caption, mask, *_ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=self.config.max_tokens
        )
        marks.append(time.perf_counter())
        side = 8 * self.config.dit.sample_size
        final = pipeline(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=caption,
            prompt_attention_mask=mask,
            num_inference_steps=steps,
            guidance_scale=1.0,
            height=side,
            width=side,
            latents=None if latents is None else torch.from_numpy(latents).to(caption.dtype),
            generator=torch.Generator().manual_seed(seed),
            use_resolution_binning=False,
            output_type="latent",
        ).images
        marks.append(time.perf_counter())
        picture = pipeline.image_processor.postprocess(pipeline.vae.decode(final).sample.float(), output_type="np")[0]
        picture = (picture * 255).round().astype(np.uint8)
        marks.append(time.perf_counter())
        spans = np.diff(marks)
        return picture, dict(zip(("text", "denoise", "decode"), map(float, spans), strict=True))


def load(folder: Path, dtype: torch.dtype) -> Peer:
    """The pipeline of the bundle in `folder`."""
    transformers.logging.set_verbosity_error()
    diffusers.logging.set_verbosity_error()
    checkpoint = load_checkpoint(folder)
    config, modules = checkpoint.config, build(checkpoint)
    dit = config.dit
    transformer = PixArtTransformer2DModel(
        num_attention_heads=dit.heads,
        attention_head_dim=dit.width // dit.heads,
        in_channels=dit.in_channels,
        out_channels=dit.in_channels,
        num_layers=dit.depth,
        cross_attention_dim=dit.width,
        sample_size=dit.sample_size,
        patch_size=dit.patch_size,
        caption_channels=dit.caption_channels,
        interpolation_scale=dit.interpolation_scale,
        use_additional_conditions=dit.size_conditions,
    )
    ours = {f"dit.{name}": value for name, value in modules.dit.state_dict().items()}
    ours |= {f"projection.{name}": value for name, value in modules.text_encoder.projection.state_dict().items()}
    theirs: dict[str, torch.Tensor] = {}
    for name, sources in DIFFUSERS.plan(dit).items():
        theirs |= dict(zip(sources, ours[name].chunk(len(sources)), strict=True))
    transformer.load_state_dict(theirs)
    _fold_latents(modules.vae, config.latent)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    sampler = config.sampler
    scheduler = LCMScheduler(
        num_train_timesteps=sampler.train_timesteps,
        beta_start=sampler.beta_start,
        beta_end=sampler.beta_end,
        beta_schedule="linear",
        original_inference_steps=sampler.origin_steps,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_scaling=sampler.timestep_scaling,
    )
    pipeline = PixArtAlphaPipeline(tokenizer, modules.text_encoder.t5, modules.vae, transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return Peer(pipeline.to(dtype), config)


def _fold_latents(vae: AutoencoderKL, latent: LatentConfig) -> None:
    """diffusers knows one scaling factor; a mean and a deviation per channel go into the first layer instead."""
    first = vae.post_quant_conv
    weight = first.weight.clone()
    first.weight = torch.nn.Parameter(weight * torch.tensor(latent.std)[None, :, None, None], requires_grad=False)
    shift = (weight[:, :, 0, 0] @ torch.tensor(latent.mean)) + first.bias
    first.bias = torch.nn.Parameter(shift, requires_grad=False)
    vae.register_to_config(scaling_factor=1.0)
