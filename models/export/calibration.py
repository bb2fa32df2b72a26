"""What a bundle's denoisers meet in use: their inputs at every step of pictures that the bundle makes itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.config import PixArtConfig
from models.consistency import NoiseSchedule
from models.positions import sincos_positions

Inputs = dict[str, NDArray[Any]]
TOKEN_MULTIPLE = 8


@dataclass(frozen=True)
class Calibration:
    """Inputs of one denoiser, a step of one picture each, in the order in which they were met."""

    inputs: list[Inputs]
    steps: int

    def split(self) -> tuple[list[Inputs], list[Inputs]]:
        """Inputs to calibrate with, and those of the last quarter of the pictures (at least one) to judge by."""
        pictures = len(self.inputs) // self.steps
        if pictures < 2:
            raise ValueError("at least two prompts are needed: one to calibrate with and one to judge by")
        cut = self.steps * (pictures - max(1, pictures // 4))
        return self.inputs[:cut], self.inputs[cut:]


class GraphPipeline:
    """A bundle's graphs in ONNX Runtime on the CPU, one picture at a time at `size` (width, height) pixels."""

    def __init__(self, folder: Path, config: PixArtConfig, size: tuple[int, int]) -> None:
        self._folder = folder
        self._config = config
        self._schedule = NoiseSchedule(config.sampler)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._width, self._height = size
        self._sessions: dict[str, Any] = {}

    def record(self, name: str, prompts: Sequence[str], steps: int, seed: int = 0) -> Calibration:
        """The inputs of `denoiser` or `denoiser_control` for a picture of each prompt in `steps` steps.

        A controlled picture follows the edges of the picture that the same noise gives without control.
        """
        random = np.random.default_rng(seed)
        shape = (steps, 1, self._config.dit.in_channels, self._height // 8, self._width // 8)
        found: list[Inputs] = []
        for prompt in prompts:
            noise = random.standard_normal(shape, dtype=np.float32)
            conditions = self._conditions(prompt)
            if name == "denoiser_control":
                latents = self._walk("denoiser", conditions, noise)[1]
                edges = self._run("edge_detector", {"image": self._run("vae_decoder", {"latents": latents})[0]})[0]
                conditions["control_latents"] = self._run("vae_encoder", {"image": edges})[0]
                conditions["strength"] = np.ones(1, np.float32)
            found += self._walk(name, conditions, noise)[0]
        return Calibration(found, steps)

    def _conditions(self, prompt: str) -> Inputs:
        config = self._config.dit
        ids = self._tokenizer.encode(prompt).ids[: self._config.max_tokens]
        length = -(-len(ids) // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
        padded = np.zeros((1, length), np.int64)
        padded[0, : len(ids)] = ids
        mask = np.arange(length)[None] < len(ids)
        rows, columns = (side // 8 // config.patch_size for side in (self._height, self._width))
        position = sincos_positions(rows, columns, config.width, config.base_size, config.interpolation_scale)
        conditions = {
            "caption": self._run("text_encoder", {"ids": padded, "mask": mask})[0],
            "mask": mask,
            "position": position.numpy(),
        }
        if config.size_conditions:
            conditions["resolution"] = np.array([[self._height, self._width]], np.float32)
            conditions["aspect_ratio"] = np.array([[self._height / self._width]], np.float32)
        return conditions

    def _walk(self, name: str, conditions: Inputs, noise: NDArray[np.float32]) -> tuple[list[Inputs], NDArray[Any]]:
        """The inputs of every step, and the latents after the last."""
        latents = noise[0]
        timesteps = self._schedule.timesteps(len(noise))
        found = []
        for index, t in enumerate(timesteps):
            last = index + 1 == len(noise)
            coefficients = self._schedule.coefficients(t, None if last else timesteps[index + 1])
            inputs = conditions | {
                "latents": latents,
                "timestep": np.array([t], np.float32),
                "coefficients": coefficients.reshape(1, -1).to(torch.float32).numpy(),
                "noise": np.zeros_like(latents) if last else noise[index + 1],
            }
            found.append(inputs)
            latents = self._run(name, inputs)[0]
        return found, latents

    def _run(self, name: str, inputs: Inputs) -> list[NDArray[Any]]:
        if name not in self._sessions:
            self._sessions[name] = session(self._folder / f"{name}.onnx")
        return self._sessions[name].run(None, inputs)


def session(path: Path) -> Any:
    """The graph at `path` in ONNX Runtime on the CPU."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
