"""Every training picture on every background, encoded once: the base is trained on latents alone."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from models.config import LatentConfig
from training.data import emoji
from training.files import save_whole
from training.precision import mixed_precision


@dataclass(frozen=True)
class LatentSet:
    """Normalised latents [subjects, colours, 4, h, w] in float16, and the constants that normalised them."""

    latents: Tensor
    config: LatentConfig


@torch.no_grad()
def encode_all(vae: AutoencoderKL, data: emoji.EmojiSet, store: Path, fingerprint: str) -> LatentSet:
    """Encode `data` on all named backgrounds, or read what an earlier call stored for the same VAE.

    Latents are centred and scaled by channel over the pictures that are not held out.
    """
    if store.exists():
        saved = torch.load(store, weights_only=True)
        if saved["fingerprint"] == fingerprint:
            return LatentSet(saved["latents"], LatentConfig(tuple(saved["mean"]), tuple(saved["std"])))
    colors = emoji.background_colors()
    rows = []
    for index in tqdm(range(len(data.subjects)), desc="encoding latents", mininterval=5):
        pictures = data.composite(torch.full((len(colors),), index), colors)
        with mixed_precision():
            rows.append(vae.encode(pictures).latent_dist.mean.float())
    raw = torch.stack(rows)
    seen = raw[[not emoji.is_held_out_picture(subject) for subject in data.subjects]]
    mean = seen.mean(dim=(0, 1, 3, 4))
    std = seen.std(dim=(0, 1, 3, 4))
    latents = ((raw - mean[:, None, None]) / std[:, None, None]).half()
    saved = {"fingerprint": fingerprint, "latents": latents, "mean": mean.tolist(), "std": std.tolist()}
    save_whole(saved, store)
    return LatentSet(latents, LatentConfig(tuple(mean.tolist()), tuple(std.tolist())))
