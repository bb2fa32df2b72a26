"""Stage 3: latent consistency distillation. `python -m training.distill --config training/configs/emoji.toml`.

The student learns to map any point of the teacher's guided DDIM trajectory to its end (`training.consistency`): one
DDIM step of the guided teacher from t to t - k, then the student at t is drawn towards its own moving average at t - k.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.dit import DiT
from models.pipeline import Pipeline
from training import base as base_stage
from training import config as recipes
from training.base import BaseConfig, CaptionedLatents, sample_captions
from training.consistency import distillation_loss, grid_timesteps, guided
from training.loop import LoopConfig, averaged_weights, run
from training.model import TextToLatents
from training.optim import muon_and_adamw
from training.origin import fingerprint
from training.precision import mixed_precision
from training.sampling import seeded_noise, to_pictures, tokenize
from training.workspace import Workspace


@dataclass(frozen=True)
class DistillConfig:
    """Constants of the distillation; names as in the paper.

    `guidance` is the teacher's w where eps = eps_uncond + w (eps_cond - eps_uncond).
    """

    loop: LoopConfig
    guidance: float = 3.0
    huber: float = 1e-3
    target_ema: float = 0.95


class DistillStage:
    """The student starts as a copy of the teacher; text encoder and captions stay frozen."""

    def __init__(self, space: Workspace, teacher: TextToLatents, base: BaseConfig, config: DistillConfig) -> None:
        self.space = space
        self.config = config
        self.batches = CaptionedLatents(space, base)
        self.groups = base.groups
        self.teacher = teacher
        self.student = copy.deepcopy(teacher.dit).requires_grad_(True)
        self.target = copy.deepcopy(teacher.dit).requires_grad_(False)
        self.result = nn.ModuleDict({"student": self.student})
        self.model = nn.ModuleDict({"student": self.student, "target": self.target})
        self.optimizers: Sequence[torch.optim.Optimizer] = muon_and_adamw(
            self.model, config.loop.lr, embedding_lr=config.loop.lr, matrices=("student.blocks",)
        )

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        space, schedule = self.space, self.space.schedule
        clean, texts, _ = self.batches.draw(self.config.loop.batch, generator)
        batch = len(texts)
        t = grid_timesteps(schedule, batch, generator)
        noisy = schedule.add_noise(clean, torch.randn(clean.shape, generator=generator), t)
        ids, mask = tokenize(space.tokenizer, [*texts, *[""] * batch], space.shape.max_tokens)
        position = self.teacher.position
        with mixed_precision(), torch.no_grad():
            caption = self.teacher.text(ids, mask)

        def teacher(latents: Tensor, t: Tensor) -> Tensor:
            with mixed_precision():
                both = self.teacher.dit(latents.repeat(2, 1, 1, 1), t.repeat(2), caption, mask, position).float()
            conditional, unconditional = both.chunk(2)
            return guided(conditional, unconditional, self.config.guidance)

        def predict(model: DiT, latents: Tensor, t: Tensor) -> Tensor:
            with mixed_precision():
                return model(latents, t, caption[:batch], mask[:batch], position).float()

        student, target = partial(predict, self.student), partial(predict, self.target)
        loss, goal = distillation_loss(schedule, teacher, student, target, noisy, t, self.config.huber)
        return loss, {"gap": (goal - clean).abs().mean().item()}

    def averaged(self, average: Any) -> None:
        """Draw the target towards the student by the distillation's own, faster average."""
        with torch.no_grad():
            for target, student in zip(self.target.parameters(), self.student.parameters(), strict=True):
                target.lerp_(student, 1 - self.config.target_ema)

    def samples(self, average: Any) -> Tensor:
        """The captions of the base's samples in 1, 2, 4 and 8 steps."""
        texts = sample_captions(self.space.data, self.groups, 8)
        ids, mask = tokenize(self.space.tokenizer, texts, self.space.shape.max_tokens)
        pipeline = Pipeline(self.space.config, self.teacher.text, average["student"], self.space.vae)
        caption, shape = self.teacher.text(ids, mask), self.space.latents.latents.shape[2:]
        noises = [seeded_noise(range(len(texts)), steps, shape) for steps in (1, 2, 4, 8)]
        return torch.stack([to_pictures(self.space, pipeline.denoise(caption, mask, noise)) for noise in noises])


def load(folder: Path, base: TextToLatents) -> TextToLatents:
    """The averaged student of a finished or running stage behind the base's text encoder, frozen."""
    dit = copy.deepcopy(base.dit)
    dit.load_state_dict(averaged_weights(folder, "student."))
    student = copy.copy(base)
    # Modules keep their parts in this dictionary; a copy of its own leaves the base's DiT where it is.
    student._modules = {**base._modules, "dit": dit.requires_grad_(False).eval()}
    return student


def main() -> None:
    """The stage's command."""
    args = recipes.command_line("Distil the base into a 4-step consistency model.").parse_args()
    recipe = recipes.read(args.config)
    base = recipes.parse(BaseConfig, recipe["base"], "base")
    config = recipes.parse(DistillConfig, recipe["distill"], "distill")
    space = Workspace.open(recipe, args.runs)
    stage = DistillStage(space, base_stage.load(space.folder / "base", space), base, config)
    origin = space.origin("base", "distill") | {"base": fingerprint(stage.teacher.state_dict())}
    run(stage, config.loop, space.folder / "distill", origin)


if __name__ == "__main__":
    main()
