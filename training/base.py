"""Stage 2: the base DiT with its text encoder. `python -m training.base --config training/configs/emoji.toml`."""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints import load_native
from models.checkpoints.build import build
from training import config as recipes
from training.data import captions, emoji
from training.data.colors import BACKGROUNDS
from training.files import save_whole, written_whole
from training.loop import LoopConfig, averaged_weights, run
from training.model import TextToLatents
from training.optim import muon_and_adamw
from training.origin import fingerprint
from training.precision import mixed_precision
from training.sampling import ddim, to_pictures, tokenize
from training.workspace import Workspace

# Nearly every caption fits; one length in all batches spares a compiled model from being compiled again.
CAPTION_TOKENS = 24


@dataclass(frozen=True)
class BaseConfig:
    """What the base is trained on and how.

    `groups` are the subjects that the model is for; all other emoji come with probability
    `other_share`, which keeps the features general enough for a control branch.
    """

    loop: LoopConfig
    groups: tuple[str, ...]
    other_share: float = 0.1
    drop_caption: float = 0.1
    snr_clip: float = 5.0
    snr_floor: float = 0.0
    embedding_lr: float = 3e-3
    guidance: float = 3.0
    compile: bool = False


class CaptionedLatents:
    """Draws batches of latents with captions, leaving out held-out pictures and pairs."""

    def __init__(self, space: Workspace, config: BaseConfig) -> None:
        self.space = space
        self.config = config
        seen = [i for i, s in enumerate(space.data.subjects) if not emoji.is_held_out_picture(s)]
        self.core = [i for i in seen if space.data.subjects[i].group in config.groups]
        self.other = [i for i in seen if space.data.subjects[i].group not in config.groups]
        names = list(BACKGROUNDS)
        self.colors = {
            i: [c for c, name in enumerate(names) if not emoji.is_held_out_pair(space.data.subjects[i], name)]
            for i in seen
        }
        self.names = names

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, list[str], list[tuple[int, int]]]:
        """Latents [B, 4, h, w], captions and (subject, colour) indices of a fresh batch."""
        choice = random.Random(int(torch.randint(2**62, (), generator=generator)))
        pairs, texts = [], []
        for _ in range(batch):
            pool = self.other if self.other and choice.random() < self.config.other_share else self.core
            subject = choice.choice(pool)
            color = choice.choice(self.colors[subject])
            dropped = choice.random() < self.config.drop_caption
            text = captions.caption(self.space.data.subjects[subject], self.names[color], choice)
            pairs.append((subject, color))
            texts.append("" if dropped else text)
        index = torch.tensor(pairs)
        return self.space.latents.latents[index[:, 0], index[:, 1]].float(), texts, pairs


def snr_weight(alphas_cumprod: Tensor, clip: float, floor: float = 0.0) -> Tensor:
    """Weights of an ε loss: min(SNR, clip) / SNR (Hang et al., 2023, "Min-SNR"), shape as given.

    An error of x0 counts min(SNR, clip), which is next to nothing where noise is strongest. There a picture's
    subject and colours are decided, and a consistency model takes its whole first step; `floor` keeps the count up.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(floor, clip) / snr


class BaseStage:
    """ε-prediction over all timesteps."""

    def __init__(self, space: Workspace, config: BaseConfig) -> None:
        torch.manual_seed(config.loop.seed)
        self.space = space
        self.config = config
        self.batches = CaptionedLatents(space, config)
        self.model = self.result = TextToLatents(space.shape, space.data.size)
        self.optimizers: Sequence[torch.optim.Optimizer] = muon_and_adamw(
            self.model, config.loop.lr, embedding_lr=config.embedding_lr, matrices=("dit.blocks", "encoder.block")
        )
        self.forward = torch.compile(self.model) if config.compile else self.model

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        clean, texts, _ = self.batches.draw(self.config.loop.batch, generator)
        ids, mask = tokenize(self.space.tokenizer, texts, self.space.shape.max_tokens, CAPTION_TOKENS)
        schedule = self.space.schedule
        t = torch.randint(schedule.config.train_timesteps, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        with mixed_precision():
            eps = self.forward(schedule.add_noise(clean, noise, t), t, ids, mask)
        each = (eps.float() - noise).square().mean(dim=(1, 2, 3))
        weight = snr_weight(schedule.alphas_cumprod[t], self.config.snr_clip, self.config.snr_floor)
        late = t > 600
        figures = {"eps_mse": each.mean().item(), "eps_mse_noisy": each[late].mean().item() if late.any() else 0.0}
        return (weight * each).mean(), figures

    def averaged(self, average: Any) -> None:
        """Nothing follows the average here."""

    def samples(self, average: Any) -> Tensor:
        """Captions drawn by rule, 25 guided steps."""
        texts = sample_captions(self.space.data, self.config.groups, 32)
        noise = torch.randn(32, *self.space.latents.latents.shape[2:], generator=torch.Generator().manual_seed(1))
        latents = ddim(average, self.space, texts, noise, steps=25, guidance=self.config.guidance)
        return to_pictures(self.space, latents).unflatten(0, (4, 8))


def sample_captions(data: emoji.EmojiSet, groups: Sequence[str], count: int) -> list[str]:
    """Captions at even distances through the seen subjects of `groups`, colours in turn."""
    seen = [s for s in data.subjects if s.group in groups and not emoji.is_held_out_picture(s)]
    names = list(BACKGROUNDS)
    return [captions.canonical(seen[i * len(seen) // count], names[i % len(names)]) for i in range(count)]


def adopt(bundle: Path, folder: Path) -> None:
    """Lay out a bundle's tokenizer and autoencoder as if the stages of the run in `folder` had made them.

    What the run has already is kept.

    Raises:
        CheckpointError: a file of the bundle is missing or damaged, or is not what the manifest describes.
    """
    checkpoint = load_native(bundle)
    tokenizer, vae = folder / "tokenizer.json", folder / "vae" / "checkpoint.pt"
    if not vae.exists():
        weights = {f"module.vae.{name}": value.float() for name, value in checkpoint.vae.items()}
        save_whole({"average": weights}, vae)
    if not tokenizer.exists():
        with written_whole(tokenizer) as scratch:
            shutil.copyfile(checkpoint.tokenizer, scratch)


def start_from(bundle: Path, model: TextToLatents) -> None:
    """Copy the text encoder and the DiT of a finished bundle into `model`.

    They are a student's, which the ε loss soon turns into a teacher again. If the run has another autoencoder than the
    bundle, its latents are relearnt; what is known of words, shapes and colours stays.

    Raises:
        CheckpointError: a file of the bundle is missing or damaged, or is not what the manifest describes.
        RuntimeError: a size differs from the recipe's; the message names the weights.
    """
    modules = build(load_native(bundle))
    model.text.load_state_dict(modules.text_encoder.state_dict())
    model.dit.load_state_dict(modules.dit.state_dict())


def load(folder: Path, space: Workspace) -> TextToLatents:
    """The averaged base of a finished or running stage, frozen."""
    model = TextToLatents(space.shape, space.data.size)
    model.load_state_dict(averaged_weights(folder))
    return model.requires_grad_(False).eval()


def main() -> None:
    """The stage's command."""
    parser = recipes.command_line("Train the base DiT and its text encoder.")
    parser.add_argument("--init", type=Path, help="start from this bundle's weights")
    args = parser.parse_args()
    recipe = recipes.read(args.config)
    config = recipes.parse(BaseConfig, recipe["base"], "base")
    if args.init:
        adopt(args.init, args.runs / recipe["name"])
    space = Workspace.open(recipe, args.runs)
    stage = BaseStage(space, config)
    origin = space.origin("base")
    if args.init:
        start_from(args.init, stage.model)
        origin["initial weights"] = fingerprint(stage.model.state_dict())
    run(stage, config.loop, space.folder / "base", origin)


if __name__ == "__main__":
    main()
