"""Samplers in PyTorch: the student as a bundle ships it or as a run left it, and the teacher that it learnt from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from models.checkpoints import load_native
from models.checkpoints.build import build
from models.pipeline import Pipeline
from models.vae import VaeDecoder
from training import base, controlnet, distill
from training import config as recipes
from training.base import BaseConfig
from training.evaluation.sampler import Pictures
from training.model import TextToLatents
from training.sampling import ddim, seeded_noise, tokenize
from training.workspace import Workspace


class StudentSampler:
    """The consistency model in float32, through the reference pipeline."""

    def __init__(self, pipeline: Pipeline, tokenizer: Tokenizer) -> None:
        self.pipeline = pipeline.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    def __call__(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        control: Pictures | None = None,
        strength: float = 1.0,
    ) -> Pictures:
        config = self.pipeline.config
        ids, mask = tokenize(self.tokenizer, captions, config.max_tokens)
        side = config.dit.sample_size
        noise = seeded_noise(seeds, steps, (config.dit.in_channels, side, side))
        if control is None:
            return self.pipeline(ids, mask, noise).numpy()
        strengths = torch.full((len(captions),), strength)
        return self.pipeline(ids, mask, noise, torch.from_numpy(control), strengths).numpy()


class TeacherSampler:
    """The base with classifier-free guidance and deterministic DDIM steps; it knows no control."""

    def __init__(self, model: TextToLatents, space: Workspace, guidance: float) -> None:
        self.model = model
        self.space = space
        self.guidance = guidance
        self.decoder = VaeDecoder(space.vae, space.latents.config)

    def __call__(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        control: Pictures | None = None,
        strength: float = 1.0,
    ) -> Pictures:
        if control is not None:
            raise ValueError("the teacher has no control branch")
        noise = seeded_noise(seeds, 1, self.space.latents.latents.shape[2:])[0]
        latents = ddim(self.model, self.space, captions, noise, steps=steps, guidance=self.guidance)
        with torch.no_grad():
            return self.decoder(latents).numpy()


def student_of_bundle(folder: Path) -> StudentSampler:
    """The student with exactly the weights that the bundle in `folder` ships.

    Raises:
        CheckpointError: a file is missing or damaged, or is not what the manifest describes.
    """
    checkpoint = load_native(folder)
    parts = build(checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    pipeline = Pipeline(checkpoint.config, parts.text_encoder, parts.dit, parts.vae, parts.controlnet)
    return StudentSampler(pipeline, tokenizer)


def student_of_run(space: Workspace) -> StudentSampler:
    """The student from the checkpoints of a recipe's run, with its control branch if that has been trained."""
    student = distill.load(space.folder / "distill", base.load(space.folder / "base", space))
    branch = None
    if (space.folder / "controlnet" / "checkpoint.pt").exists():
        branch = controlnet.load(space.folder / "controlnet", space, student.dit)
    return StudentSampler(Pipeline(space.config, student.text, student.dit, space.vae, branch), space.tokenizer)


def teacher_of_run(space: Workspace) -> TeacherSampler:
    """The guided teacher from the checkpoint of a recipe's base stage; the guidance is the distillation's."""
    guidance = recipes.parse(BaseConfig, space.recipe["base"], "base").guidance
    if "distill" in space.recipe:
        guidance = recipes.parse(distill.DistillConfig, space.recipe["distill"], "distill").guidance
    return TeacherSampler(base.load(space.folder / "base", space), space, guidance)
