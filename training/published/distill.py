"""Latent consistency distillation of a published checkpoint on a GPU: PixArt-δ, section 3.

    python -m training.published.distill --model PixArt-alpha/PixArt-XL-2-1024-MS --data PREPARED \\
        --config training/configs/xl2.toml --out lcm

`--out` is a checkpoint in our layout, which `pixart compile --model` takes. A run that was stopped goes on.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoints import save_native
from models.config import PixArtConfig
from models.consistency import NoiseSchedule
from models.dit import DiT
from models.pipeline import denoise, place_and_size
from training import config as recipes
from training.consistency import distillation_loss, grid_timesteps, guided
from training.distill import DistillConfig
from training.loop import averaged_weights, run
from training.published.blocks import recompute
from training.published.command import command_line, open_model, refusals
from training.published.device import Placement
from training.published.prepared import Batch, PreparedSet
from training.published.samples import Decoder
from training.sampling import seeded_noise


class Distillation:
    """The stage: a teacher in half precision, and a student and its average in float32 that start as its copies."""

    def __init__(
        self,
        pixart: PixArtConfig,
        teacher: DiT,
        decoder: Decoder,
        data: PreparedSet,
        config: DistillConfig,
        place: Placement,
    ) -> None:
        self.pixart, self.data, self.config, self.place = pixart, data, config, place
        self.schedule = NoiseSchedule(pixart.sampler)
        self.decoder = decoder
        self.student = place.hold(copy.deepcopy(teacher), torch.float32).requires_grad_(True)
        recompute(self.student.blocks)
        self.target = place.hold(copy.deepcopy(teacher), torch.float32).requires_grad_(False)
        self.teacher = place.hold(teacher, place.half).requires_grad_(False)
        self.result = nn.ModuleDict({"student": self.student})
        self.model = nn.ModuleDict({"student": self.student, "target": self.target})
        self.optimizers: Sequence[torch.optim.Optimizer] = [
            torch.optim.AdamW(self.student.parameters(), lr=config.loop.lr, weight_decay=0.0, fused=True)
        ]
        self.empty = tuple(part.to(place.device) for part in data.empty)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        batch = self.data.draw(self.config.loop.batch, generator)
        noise = torch.randn(batch.latents.shape, generator=generator).to(self.place.device)
        t = grid_timesteps(self.schedule, len(noise), generator)
        loss, goal = self.loss_of(batch.to(self.place.device), noise, t)
        clean = batch.latents.to(self.place.device)
        return loss, {"gap": (goal - clean).abs().mean().item(), "memory_gb": self.place.gigabytes_used()}

    def loss_of(self, batch: Batch, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the student's goal [B, C, h, w], with `noise` like the latents and timesteps `t` [B]."""
        noisy = self.schedule.add_noise(batch.latents, noise, t)
        predict = partial(self._predict, batch.caption, batch.mask)
        caption, mask = (part.expand(len(t), *part.shape[1:]) for part in self.empty)

        def teacher(latents: Tensor, t: Tensor) -> Tensor:
            unconditional = self._predict(caption, mask, self.teacher, latents, t)
            return guided(predict(self.teacher, latents, t), unconditional, self.config.guidance)

        student, target = partial(predict, self.student), partial(predict, self.target)
        return distillation_loss(self.schedule, teacher, student, target, noisy, t, self.config.huber)

    def _predict(self, caption: Tensor, mask: Tensor, model: DiT, latents: Tensor, t: Tensor) -> Tensor:
        position, sizes = place_and_size(self.pixart.dit, latents)
        with self.place.mixed_precision():
            return model(latents, t.to(self.place.device), caption, mask, position, **sizes).float()

    def averaged(self, average: Any) -> None:
        """Draw the target towards the student by the distillation's own average."""
        with torch.no_grad():
            for target, student in zip(self.target.parameters(), self.student.parameters(), strict=True):
                target.lerp_(student, 1 - self.config.target_ema)

    def samples(self, average: Any) -> Tensor:
        """The first pictures' captions in 1, 2 and 4 steps."""
        batch = self.data.first(4).to(self.place.device)
        rows = []
        for steps in (1, 2, 4):
            noise = seeded_noise(range(len(batch.latents)), steps, batch.latents.shape[1:]).to(self.place.device)
            with self.place.mixed_precision():
                latents = denoise(self.pixart, average["student"], batch.caption, batch.mask, noise)
            rows.append(self.decoder(latents.float()))
        return torch.stack(rows)


def main(arguments: list[str] | None = None) -> None:
    """The stage's command.

    Raises:
        SystemExit: with the reason, if model, data or recipe cannot be used.
    """
    parser = command_line("Distil a published model into a 4-step consistency model.")
    parser.add_argument("--out", type=Path, help="also write the student as a checkpoint to this folder")
    args = parser.parse_args(arguments)
    with refusals():
        recipe = recipes.read(args.config)
        config = recipes.parse(DistillConfig, recipe["distill"], "distill")
        opened = open_model(args)
        pixart = opened.checkpoint.config
        stage = Distillation(pixart, opened.dit, opened.decoder, opened.data, config, opened.place)
    folder = args.runs / recipe["name"] / "distill"
    run(stage, config.loop, folder, opened.origin(recipe, "distill"))
    if args.out:
        save_native(args.out, dataclasses.replace(opened.checkpoint, dit=averaged_weights(folder, "student.")))
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
