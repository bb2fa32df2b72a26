"""The finished stages as evaluations see them: captions in, pictures out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training import base as base_stage
from training import controlnet as control_stage
from training import distill as distill_stage
from training.base import Workspace
from training.controlnet import encode, to_bytes
from training.sampling import consistency, ddim, to_pictures


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _finish(space: Workspace, latents: Tensor) -> NDArray[np.uint8]:
    return to_bytes(to_pictures(space, latents)).numpy()


@dataclass(frozen=True)
class Student:
    """The distilled model, with its control branch if that stage has run. A `training.evaluation` Sampler."""

    space: Workspace
    model: nn.Module
    controlled: nn.Module | None = None

    def __call__(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        control: NDArray[np.uint8] | None = None,
        strength: float = 1.0,
    ) -> NDArray[np.uint8]:
        """Pictures uint8 [B, H, W, 3]; `control` is uint8 edge maps [B, H, W, 3]."""
        edges, model = None, self.model
        if control is not None:
            if self.controlled is None:
                raise ValueError("this model has no control branch")
            edges, model = encode(self.space, _to_float(control)), self.controlled
        latents = consistency(
            model, self.space, captions, _generators(seeds), steps=steps, control=edges, strength=strength
        )
        return _finish(self.space, latents)


@dataclass(frozen=True)
class Teacher:
    """The base with classifier-free guidance and DDIM steps. A `training.evaluation` Sampler."""

    space: Workspace
    model: nn.Module
    guidance: float

    def __call__(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        control: NDArray[np.uint8] | None = None,
        strength: float = 1.0,
    ) -> NDArray[np.uint8]:
        """Pictures uint8 [B, H, W, 3]."""
        if control is not None:
            raise ValueError("the teacher is judged without control")
        shape = self.space.latents.latents.shape[2:]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in _generators(seeds)])
        return _finish(self.space, ddim(self.model, self.space, captions, noise, steps=steps, guidance=self.guidance))


def _to_float(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def open_student(space: Workspace) -> Student:
    """The student of a workspace, controlled if there is a control branch."""
    student = distill_stage.load(space.folder / "distill", base_stage.load(space.folder / "base", space))
    branch = space.folder / "controlnet"
    controlled = control_stage.load(branch, space, student) if (branch / "checkpoint.pt").exists() else None
    return Student(space, student, controlled)


def open_teacher(space: Workspace, guidance: float) -> Teacher:
    """The base of a workspace."""
    return Teacher(space, base_stage.load(space.folder / "base", space), guidance)
