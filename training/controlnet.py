"""Stage 4: the ControlNet-Transformer. `python -m training.controlnet --config training/configs/emoji.toml`.

Copies of the first blocks learn to draw along an edge map (PixArt-δ, section 4), in one of two ways:

* `objective = "epsilon"`: under the frozen base and the usual ε loss; the result is used, unchanged, with the student;
* `objective = "consistency"`: under the frozen student, whose jump to the clean picture is drawn to the true one by the
  distillation's pseudo-Huber loss. No teacher is needed, so with `--bundle FOLDER` it trains a branch for a finished
  model, which `--out FILE` then writes as safetensors. Two aids, each off unless the recipe asks for it, teach what a
  sampler of few steps needs: `rollout` starts from latents of the student's own sampling, `feedback` judges the edges
  of the decoded jump.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import load_native
from models.checkpoints.build import Modules, build
from models.checkpoints.writer import write_safetensors
from models.consistency import consistency_step
from models.controlnet import ControlNetTransformer
from models.dit import DiT
from models.pipeline import Pipeline
from training import base as base_stage
from training import config as recipes
from training import distill as distill_stage
from training.base import snr_weight
from training.consistency import consistency_function, pseudo_huber
from training.control_pairs import as_pictures, encode, encode_pairs, sketches, soft_edge_maps
from training.data import captions, emoji
from training.data.colors import BACKGROUNDS
from training.feedback import EdgeFeedback
from training.loop import LoopConfig, averaged_weights, run
from training.model import TextToLatents
from training.optim import muon_and_adamw
from training.origin import fingerprint
from training.precision import mixed_precision
from training.sampling import seeded_noise, to_pictures, tokenize
from training.workspace import Workspace


@dataclass(frozen=True)
class ControlConfig:
    """How the branch is trained.

    Attributes:
        views: zoomed, shifted and mirrored views of every picture, encoded beforehand.
        sketches: share of pictures whose edges are given as a sketch (`training.data.sketches`) instead of as they are.
        drop_caption: share of captions left empty.
        rollout: share of updates whose noisy latents come from sampling with the branch as it is, instead of from
            true pictures, so that it learns to mend what its own earlier steps have drawn.
        feedback: weight of the decoded jump's edges (`training.feedback`), for `feedback_batch` pictures a step.
    """

    loop: LoopConfig
    views: int = 4
    sketches: float = 0.0
    drop_caption: float = 0.3
    snr_clip: float = 5.0
    objective: Literal["epsilon", "consistency"] = "epsilon"
    huber: float = 1e-3
    rollout: float = 0.0
    rollout_steps: int = 4
    feedback: float = 0.0
    feedback_batch: int = 4

    def __post_init__(self) -> None:
        if self.objective == "epsilon" and (self.rollout or self.feedback):
            raise ValueError('rollout and feedback judge jumps to clean pictures: they need objective = "consistency"')


@dataclass(frozen=True)
class Condition:
    """What a batch is drawn from: `caption` [B, L, width] with `mask` [B, L], `control` latents [B, 4, h, w]."""

    caption: Tensor
    mask: Tensor
    control: Tensor


class ControlStage:
    """Only the control branch learns, on the frozen base or on the frozen student."""

    def __init__(
        self,
        space: Workspace,
        base: TextToLatents,
        student: TextToLatents,
        config: ControlConfig,
        branch: Callable[[DiT], ControlNetTransformer] | None = None,
    ) -> None:
        """`branch` makes another one than the recipe's ControlNet-Transformer for the frozen transformer."""
        torch.manual_seed(config.loop.seed)
        self.space, self.student, self.config = space, student, config
        self.frozen = base if config.objective == "epsilon" else student
        self.data = encode_pairs(space, config.views, space.folder / "control-latents.pt")
        make = branch or partial(ControlNetTransformer, depth=space.shape.controlnet_depth)
        self.model = self.result = make(self.frozen.dit).requires_grad_(True)
        self.controlled = self.model.attached_to(self.frozen.dit)
        self.feedback = EdgeFeedback(space.vae, space.latents.config)
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
        clean = self.data.pictures[index].float()
        drawn = torch.rand(len(index), 1, 1, 1, generator=generator) < self.config.sketches
        control = torch.where(drawn, self.data.sketches[index], self.data.edges[index]).float()
        ids, mask = tokenize(space.tokenizer, texts, space.shape.max_tokens)
        with torch.no_grad(), mixed_precision():
            caption = self.frozen.text(ids, mask)
        condition = Condition(caption, mask, control)
        noise = torch.randn(clean.shape, generator=generator)
        if torch.rand((), generator=generator) < self.config.rollout:
            noisy, t = self._own_latents(condition, noise, generator)
        else:
            t = self._timesteps(len(texts), generator)
            noisy = schedule.add_noise(clean, noise, t)
        eps = self._predict(noisy, t, condition)
        if self.config.objective == "epsilon":
            error = (eps - noise).square().mean(dim=(1, 2, 3))
            weight = snr_weight(schedule.alphas_cumprod[t], self.config.snr_clip)
            return (weight * error).mean(), {"eps_mse": error.mean().item()}
        jump = consistency_function(schedule, noisy, eps, t)
        loss = pseudo_huber(jump, clean, self.config.huber).mean()
        figures = {"jump": loss.item()}
        if self.config.feedback:
            some = slice(self.config.feedback_batch)
            edges = self.feedback(jump[some], self.data.maps[index[some]]).mean()
            loss = loss + self.config.feedback * edges
            figures["edges"] = edges.item()
        return loss, figures

    def _predict(self, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """ε [B, 4, h, w] in float32, the branch at full strength."""
        strength = torch.ones(len(t))
        with mixed_precision():
            eps: Tensor = self.controlled(
                latents,
                t,
                condition.caption,
                condition.mask,
                self.frozen.position,
                control_latents=condition.control,
                strength=strength,
            )
        return eps.float()

    @torch.no_grad()
    def _own_latents(self, condition: Condition, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where sampling from pure noise `latents` comes to at one of its steps, and that step's timestep [B]."""
        schedule, batch = self.space.schedule, len(latents)
        timesteps = schedule.timesteps(self.config.rollout_steps)
        stop = int(torch.randint(len(timesteps), (), generator=generator))
        for now, after in pairwise(timesteps[: stop + 1]):
            eps = self._predict(latents, torch.full((batch,), now), condition)
            coefficients = schedule.coefficients(now, after).expand(batch, -1)
            latents, _ = consistency_step(latents, eps, coefficients, torch.randn(latents.shape, generator=generator))
        return latents, torch.full((batch,), timesteps[stop])

    def _timesteps(self, batch: int, generator: torch.Generator) -> Tensor:
        """Any timestep for ε; for consistency those of the student's training grid, half of them from its last fifth.

        The first of few steps decides the outline, and it is taken where noise is strongest.
        """
        steps = self.space.schedule.config.train_timesteps
        if self.config.objective == "epsilon":
            return torch.randint(steps, (batch,), generator=generator)
        count = self.space.schedule.config.origin_steps
        anywhere = torch.randint(count, (batch,), generator=generator)
        late = torch.randint(count - count // 5, count, (batch,), generator=generator)
        index = torch.where(torch.rand(batch, generator=generator) < 0.5, anywhere, late)
        return (index + 1) * (steps // count) - 1

    def averaged(self, average: Any) -> None:
        """Nothing follows the average here."""

    def samples(self, average: Any) -> Tensor:
        """Held-out pictures, what the student draws without control, then edges and sketches, each above their like."""
        space = self.space
        held = [i for i, s in enumerate(space.data.subjects) if emoji.is_held_out_picture(s)]
        held = held[:: max(1, len(held) // 8)][:8]
        color = torch.arange(len(held))
        shown = space.data.composite(torch.tensor(held), emoji.background_colors()[color])
        texts = [captions.canonical(space.data.subjects[i], self.names[c]) for i, c in zip(held, color, strict=True)]
        edges = soft_edge_maps(shown)
        drawn = sketches(edges, torch.from_numpy(space.data.pictures[held, 3]), np.random.default_rng(1))
        ids, mask = tokenize(space.tokenizer, texts, space.shape.max_tokens)
        caption = self.student.text(ids, mask)
        noise = seeded_noise(range(len(held)), 4, space.latents.latents.shape[2:])
        pipeline = Pipeline(space.config, self.student.text, self.student.dit, space.vae, average)
        rows = [shown, to_pictures(space, pipeline.denoise(caption, mask, noise))]
        for asked in (as_pictures(edges), as_pictures(drawn)):
            control = encode(space, asked)
            rows += [asked, to_pictures(space, pipeline.denoise(caption, mask, noise, control, torch.ones(len(held))))]
        return torch.stack(rows)


def load(folder: Path, space: Workspace, dit: DiT) -> ControlNetTransformer:
    """The averaged control branch of a finished or running stage for a base like `dit`, frozen."""
    branch = ControlNetTransformer(dit, space.shape.controlnet_depth)
    branch.load_state_dict(averaged_weights(folder))
    return branch.requires_grad_(False).eval()


def text_to_latents(space: Workspace, modules: Modules) -> TextToLatents:
    """A bundle's text encoder and DiT as one frozen model."""
    model = TextToLatents(space.shape, space.data.size)
    model.text, model.dit = modules.text_encoder, modules.dit
    return model.requires_grad_(False).eval()


def main() -> None:
    """The stage's command."""
    parser = recipes.command_line("Train the control branch on the frozen base, or on the frozen student.")
    parser.add_argument("--bundle", type=Path, help="train on this bundle's student instead of the run's stages")
    parser.add_argument("--init", type=Path, help="start from this bundle's branch")
    parser.add_argument("--out", type=Path, help="also write the branch to this safetensors file, in half precision")
    args = parser.parse_args()
    recipe = recipes.read(args.config)
    config = recipes.parse(ControlConfig, recipe["controlnet"], "controlnet")
    if args.bundle:
        if config.objective != "consistency":
            parser.error('--bundle ships no base: the recipe has to say objective = "consistency"')
        space, modules = Workspace.of_bundle(recipe, args.runs, args.bundle)
        base = student = text_to_latents(space, modules)
    else:
        space = Workspace.open(recipe, args.runs)
        base = base_stage.load(space.folder / "base", space)
        student = distill_stage.load(space.folder / "distill", base)
    stage = ControlStage(space, base, student, config)
    origin = space.origin("controlnet") | {"frozen model": fingerprint(stage.frozen.state_dict())}
    if args.init:
        branch = build(load_native(args.init)).controlnet
        if branch is None:
            parser.error(f"--init: {args.init} has no control branch")
        stage.model.load_state_dict(branch.state_dict())
        origin["initial weights"] = fingerprint(stage.model.state_dict())
    run(stage, config.loop, space.folder / "controlnet", origin)
    if args.out:
        write_safetensors(args.out, averaged_weights(space.folder / "controlnet"), torch.float16)


if __name__ == "__main__":
    main()
