"""What every stage after the autoencoder works with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from tokenizers import Tokenizer

from models.config import PixArtConfig
from models.consistency import NoiseSchedule
from training import config as recipes
from training import vae as vae_stage
from training.data import captions, emoji
from training.latents import LatentSet, encode_all
from training.model import ModelShape, pixart_config


@dataclass(frozen=True)
class Workspace:
    """A recipe, its folder, and what the stages before have left there."""

    recipe: dict[str, Any]
    folder: Path
    shape: ModelShape
    config: PixArtConfig
    data: emoji.EmojiSet
    vae: AutoencoderKL
    latents: LatentSet
    tokenizer: Tokenizer
    schedule: NoiseSchedule

    @classmethod
    def open(cls, recipe: dict[str, Any], runs: Path) -> "Workspace":
        """Load data, the finished VAE, its latents and the tokenizer of a recipe."""
        folder = runs / recipe["name"]
        data = emoji.load(runs / "data", recipe["data"]["size"])
        shape = recipes.parse(ModelShape, recipe["model"], "model")
        vae_config = recipes.parse(vae_stage.VaeConfig, recipe["vae"], "vae")
        vae = vae_stage.load(folder / "vae", vae_config, data.size)
        latents = encode_all(vae, data, folder / "latents.pt", vae_stage.fingerprint(vae))
        config = pixart_config(shape, vae_config, latents.config, data.size)
        tokenizer = captions.load_tokenizer(folder / "tokenizer.json", data.subjects, shape.text.vocabulary)
        return cls(recipe, folder, shape, config, data, vae, latents, tokenizer, NoiseSchedule(config.sampler))
