"""The loop that every stage shares: steps, averages, checkpoints, a CSV log and sample grids.

A stage's randomness comes only from the generator that the loop hands it, and that generator is
seeded anew at every step. So a run that is killed and resumed repeats an unbroken one exactly.
"""

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from training.files import save_whole
from training.origin import Origin, refuse_another


@dataclass(frozen=True)
class LoopConfig:
    """How long a stage runs, how fast it learns, and what it leaves behind on the way.

    Attributes:
        final_lr: share of `lr` at the last step of the cosine.
        ema: decay of the moving average that the stage results in.
        clip: largest norm of the gradient.
        plain_attention: as matrix products, all scores in memory. On a CPU they beat the blockwise kernel at 64 tokens,
            backward most of all; with thousands of tokens they would fill the memory.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    final_lr: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    save_every: int = 250
    sample_every: int = 1000
    plain_attention: bool = True


class Stage(Protocol):
    """What a training stage gives to the loop."""

    @property
    def model(self) -> nn.Module:
        """What is saved; the optimizers train those of its parameters that ask for a gradient."""

    @property
    def result(self) -> nn.Module:
        """The part of `model` whose moving average the stage results in, or all of it."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """All of them take a step after each batch."""

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of one fresh batch, and further figures for the log."""

    def averaged(self, average: Any) -> None:
        """Called after each optimizer step with the moving average of `result`."""

    def samples(self, average: Any) -> Tensor:
        """Pictures [rows, columns, 3, H, W] in -1..1 that show how far the stage has come."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step: a function of (seed, step) alone."""
    return torch.Generator().manual_seed((seed << 32) + step)


def learning_rate_share(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine from 1 down to `final_lr`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, config.steps)))
    return warm * (config.final_lr + (1 - config.final_lr) * cosine)


def moving_average(decay: float) -> Callable[..., None]:
    """An exponential average whose window grows with the run, so early weights are soon forgotten."""

    def update(average: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        ramped = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(average, current, 1 - ramped)

    return update


def save_grid(images: Tensor, path: Path) -> None:
    """Write pictures [rows, columns, 3, H, W] in -1..1 as one PNG."""
    rows, columns, _, height, width = images.shape
    tiled = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((tiled + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()).save(path)


def averaged_weights(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The moving average that a finished or running stage left in `folder`: its tensors below `prefix`, without it."""
    state: dict[str, Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")["average"]
    prefix = f"module.{prefix}"
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class _Log:
    """A CSV log that forgets the rows after the checkpoint that a run resumes from."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        rows: list[dict[str, str]] = []
        if path.exists() and resumed_at:
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < resumed_at]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._writer: csv.DictWriter[str] | None = None
        for row in rows:
            self.write(row)

    def write(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row))
            self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()


def run(stage: Stage, config: LoopConfig, folder: Path, origin: Origin, *, log_every: int = 20) -> nn.Module:
    """Train `stage` for `config.steps` steps, resuming from `folder` if a checkpoint lies there.

    Returns:
        The moving average of the stage's result, which is what later stages and the bundle use.

    Raises:
        SystemExit: the checkpoint there is of another `origin`.
    """
    checkpoint = folder / "checkpoint.pt"
    average = AveragedModel(stage.result, multi_avg_fn=moving_average(config.ema))
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        refuse_another(folder, state.get("origin"), origin)
        start = int(state["step"])
        stage.model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(stage.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        print(f"resuming {folder} at step {start}", flush=True)
    base_lrs = [[group.setdefault("base_lr", group["lr"]) for group in o.param_groups] for o in stage.optimizers]

    def save(step: int) -> None:
        state = {
            "step": step,
            "origin": dict(origin),
            "model": stage.model.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in stage.optimizers],
        }
        save_whole(state, checkpoint)

    log = _Log(folder / "log.csv", start)
    began = time.monotonic()
    parameters = [p for p in stage.model.parameters() if p.requires_grad]
    with tqdm(total=config.steps, initial=start, desc=folder.name, mininterval=5) as bar:
        for step in range(start, config.steps):
            share = learning_rate_share(step, config)
            for optimizer, lrs in zip(stage.optimizers, base_lrs, strict=True):
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = lr * share
            with sdpa_kernel(SDPBackend.MATH) if config.plain_attention else nullcontext():
                loss, figures = stage.loss(step, step_generator(config.seed, step))
                loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, config.clip)
            for optimizer in stage.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            average.update_parameters(stage.result)
            stage.averaged(average.module)
            done = step + 1
            bar.update()
            if done % log_every == 0 or done == config.steps:
                row = {"step": step, "loss": loss.item(), "grad_norm": norm.item(), **figures}
                row["seconds"] = round(time.monotonic() - began, 1)
                log.write(row)
                bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k not in ("step", "seconds")})
            if done % config.save_every == 0 or done == config.steps:
                save(done)
            if done % config.sample_every == 0 or done == config.steps:
                with torch.no_grad():
                    save_grid(stage.samples(average.module).float(), folder / f"samples-{done:06d}.png")
    return average.module
