"""Stage 4: the ControlNet-Transformer. `python -m training.controlnet --config training/configs/emoji.toml`.

Copies of the first blocks learn, under a frozen base and the usual ε loss, to draw along an edge
map (PixArt-δ, section 3). The result is used, unchanged, with the distilled student.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.controlnet import ControlledDiT, ControlNetTransformer
from models.dit import DiT
from models.edges import SoftEdge
from models.pipeline import Pipeline
from training import base as base_stage
from training import config as recipes
from training import distill as distill_stage
from training.base import snr_weight
from training.data import captions, emoji
from training.data.colors import BACKGROUNDS
from training.loop import LoopConfig, averaged_weights, run, step_generator
from training.model import TextToLatents
from training.optim import muon_and_adamw
from training.precision import mixed_precision
from training.sampling import seeded_noise, to_pictures, tokenize
from training.vae import augment, fingerprint
from training.workspace import Workspace


@dataclass(frozen=True)
class ControlConfig:
    """`views`: how many zoomed, shifted and mirrored views of every picture are encoded beforehand."""

    loop: LoopConfig
    views: int = 4
    drop_caption: float = 0.3
    snr_clip: float = 5.0
    strength: float = 1.0


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in -1..1 → uint8 [B, H, W, 3]."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


@torch.no_grad()
def control_latents(space: Workspace, pictures: Tensor) -> Tensor:
    """Normalised latents of the soft edges of pictures [B, 3, H, W] in -1..1."""
    edges = SoftEdge()(to_bytes(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return encode(space, edges)


@torch.no_grad()
def encode(space: Workspace, pictures: Tensor) -> Tensor:
    """Normalised latents of pictures [B, 3, H, W] in -1..1."""
    with mixed_precision():
        raw = space.vae.encode(pictures).latent_dist.mean.float()
    mean = torch.tensor(space.latents.config.mean)[:, None, None]
    std = torch.tensor(space.latents.config.std)[:, None, None]
    return (raw - mean) / std


@dataclass(frozen=True)
class ControlPairs:
    """Latents of pictures and of their edges, both float16 [N, 4, h, w], with subject and colour indices [N, 2]."""

    pictures: Tensor
    edges: Tensor
    pairs: Tensor


def encode_pairs(space: Workspace, views: int, store: Path) -> ControlPairs:
    """Encode `views` augmented views of every picture that is not held out, or read them back."""
    key = f"{fingerprint(space.vae)}/{views}"
    if store.exists():
        saved = torch.load(store, weights_only=True)
        if saved["key"] == key:
            return ControlPairs(saved["pictures"], saved["edges"], saved["pairs"])
    seen = torch.tensor([i for i, s in enumerate(space.data.subjects) if not emoji.is_held_out_picture(s)])
    colors = emoji.background_colors()
    source = torch.from_numpy(space.data.pictures)
    pictures, edges, pairs = [], [], []
    for chunk in tqdm(range(views * len(seen) // 16), desc="encoding edges", mininterval=5):
        generator = step_generator(1, chunk)
        subject = seen[(torch.arange(16) + chunk * 16) % len(seen)]
        color = torch.randint(len(colors), (16,), generator=generator)
        shown = emoji.composite(augment(source[subject], generator), colors[color])
        pictures.append(encode(space, shown).half())
        edges.append(control_latents(space, shown).half())
        pairs.append(torch.stack([subject, color], dim=1))
    result = ControlPairs(torch.cat(pictures), torch.cat(edges), torch.cat(pairs))
    torch.save({"key": key, "pictures": result.pictures, "edges": result.edges, "pairs": result.pairs}, store)
    return result


class ControlStage:
    """The ε loss of the base, with only the control branch learning."""

    def __init__(self, space: Workspace, base: TextToLatents, student: TextToLatents, config: ControlConfig) -> None:
        torch.manual_seed(config.loop.seed)
        self.space, self.base, self.student, self.config = space, base, student, config
        self.data = encode_pairs(space, config.views, space.folder / "control-latents.pt")
        self.model = ControlNetTransformer(base.dit, space.shape.controlnet_depth).requires_grad_(True)
        self.controlled = ControlledDiT(base.dit, self.model)
        self.optimizers: Sequence[torch.optim.Optimizer] = muon_and_adamw(
            self.model, config.loop.lr, embedding_lr=config.loop.lr, matrices=("blocks", "proj")
        )
        self.names = list(BACKGROUNDS)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        space, schedule = self.space, self.space.schedule
        index = torch.randint(len(self.data.pairs), (self.config.loop.batch,), generator=generator)
        choice = random.Random(int(torch.randint(2**62, (), generator=generator)))
        texts = [
            ""
            if choice.random() < self.config.drop_caption
            else captions.caption(space.data.subjects[subject], self.names[color], choice)
            for subject, color in self.data.pairs[index].tolist()
        ]
        ids, mask = tokenize(space.tokenizer, texts, space.shape.max_tokens)
        clean, control = self.data.pictures[index].float(), self.data.edges[index].float()
        t = torch.randint(schedule.config.train_timesteps, (len(texts),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        strength = torch.ones(len(texts))
        with mixed_precision():
            with torch.no_grad():
                caption = self.base.text(ids, mask)
            noisy = schedule.add_noise(clean, noise, t)
            eps = self.controlled(
                noisy, t, caption, mask, self.base.position, control_latents=control, strength=strength
            )
        each = (eps.float() - noise).square().mean(dim=(1, 2, 3))
        weight = snr_weight(schedule.alphas_cumprod[t], self.config.snr_clip)
        return (weight * each).mean(), {"eps_mse": each.mean().item()}

    def averaged(self, average: Any) -> None:
        """Nothing follows the average here."""

    def samples(self, average: Any) -> Tensor:
        """Held-out pictures, their edges, and what the 4-step student draws along them."""
        space = self.space
        held = [i for i, s in enumerate(space.data.subjects) if emoji.is_held_out_picture(s)]
        held = held[:: len(held) // 8][:8]
        color = torch.arange(8)
        shown = space.data.composite(torch.tensor(held), emoji.background_colors()[color])
        texts = [captions.canonical(space.data.subjects[i], self.names[c]) for i, c in zip(held, color, strict=True)]
        edges = SoftEdge()(to_bytes(shown)).permute(0, 3, 1, 2).float() / 127.5 - 1
        rows = [shown, edges]
        ids, mask = tokenize(space.tokenizer, texts, space.shape.max_tokens)
        caption, noise = self.student.text(ids, mask), seeded_noise(range(8), 4, space.latents.latents.shape[2:])
        pipeline = Pipeline(space.config, self.student.text, self.student.dit, space.vae, average)
        rows += [
            to_pictures(space, pipeline.denoise(caption, mask, noise, control, torch.ones(8)))
            for control in (control_latents(space, shown), None)
        ]
        return torch.stack(rows)


def load(folder: Path, space: Workspace, dit: DiT) -> ControlNetTransformer:
    """The averaged control branch of a finished or running stage for a base like `dit`, frozen."""
    branch = ControlNetTransformer(dit, space.shape.controlnet_depth)
    branch.load_state_dict(averaged_weights(folder))
    return branch.requires_grad_(False).eval()


def main() -> None:
    """The stage's command."""
    args = recipes.command_line("Train the control branch on the frozen base.").parse_args()
    recipe = recipes.read(args.config)
    config = recipes.parse(ControlConfig, recipe["controlnet"], "controlnet")
    space = Workspace.open(recipe, args.runs)
    base = base_stage.load(space.folder / "base", space)
    student = distill_stage.load(space.folder / "distill", base)
    run(ControlStage(space, base, student, config), config.loop, space.folder / "controlnet")


if __name__ == "__main__":
    main()
