"""What every stage after the autoencoder works with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer

from models.checkpoints import load_native
from models.checkpoints.build import Modules, build
from models.config import PixArtConfig
from models.consistency import NoiseSchedule
from training import config as recipes
from training import vae as vae_stage
from training.data import captions, emoji
from training.latents import LatentSet, encode_all
from training.model import ModelShape, pixart_config
from training.origin import fingerprint, tables


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
        latents = encode_all(vae, data, folder / "latents.pt", fingerprint(vae.state_dict()))
        config = pixart_config(shape, vae_config, latents.config, data.size)
        tokenizer = captions.load_tokenizer(folder / "tokenizer.json", data.subjects, shape.text.vocabulary)
        return cls(recipe, folder, shape, config, data, vae, latents, tokenizer, NoiseSchedule(config.sampler))

    @classmethod
    def of_bundle(cls, recipe: dict[str, Any], runs: Path, bundle: Path) -> tuple["Workspace", Modules]:
        """A workspace around a finished model, and its modules: for a stage that adds to what a bundle ships.

        It holds no encoded pictures, only their shape.

        Raises:
            CheckpointError: a file of the bundle is missing or damaged, or is not what the manifest describes.
        """
        checkpoint = load_native(bundle)
        modules = build(checkpoint)
        config = checkpoint.config
        data = emoji.load(runs / "data", recipe["data"]["size"])
        shape = recipes.parse(ModelShape, recipe["model"], "model")
        tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
        none = torch.empty(0, 0, config.dit.in_channels, config.dit.sample_size, config.dit.sample_size)
        folder = runs / recipe["name"]
        folder.mkdir(parents=True, exist_ok=True)
        latents = LatentSet(none, config.latent)
        schedule = NoiseSchedule(config.sampler)
        return cls(recipe, folder, shape, config, data, modules.vae, latents, tokenizer, schedule), modules

    def origin(self, *stages: str) -> dict[str, str]:
        """What a stage that reads these tables of the recipe builds on, but for the weights of other stages."""
        return tables(self.recipe, "data", "model", *stages) | {
            "pictures": self.data.digest(),
            "autoencoder": fingerprint(self.vae.state_dict()),
            "tokenizer": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest(),
        }
