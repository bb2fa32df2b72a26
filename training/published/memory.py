"""`python -m training.published.memory`: how much memory a step of each stage needs, without a GPU and without weights.

Every operation of a step runs on tensors that have a shape and no content (PyTorch's fake tensors), and the bytes of
those that are alive are counted. Kernels' workspaces, fragmentation and the CUDA context (about 1 GB) come on top.
"""

import argparse
import copy
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.config import DiTConfig, LatentConfig, PixArtConfig, SamplerConfig
from models.dit import DiT
from training.distill import DistillConfig
from training.loop import LoopConfig
from training.published.control import Control, ControlConfig
from training.published.device import Placement
from training.published.distill import Distillation
from training.published.prepared import Batch

STAGES = ("distill", "controlnet")


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors made while it is entered, from their making until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            weakref.finalize(storage, self._freed, key, size)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


class OneFakeMode(FakeTensorMode):
    """A mode in which copies of its tensors stay."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "OneFakeMode":
        return self


class Imagined:
    """Prepared data without content."""

    has_edges = True

    def __init__(self, model: DiTConfig, tokens: int) -> None:
        self.side = model.sample_size
        self.empty = torch.zeros(1, tokens, model.width), torch.ones(1, tokens, dtype=torch.bool)

    def draw(self, count: int) -> Batch:
        """`count` pictures at the model's own size."""
        latents = torch.zeros(count, 4, self.side, self.side)
        caption, mask = (part.repeat(count, *[1] * (part.ndim - 1)) for part in self.empty)
        return Batch(latents, caption, mask, latents.clone())


def peak_bytes(kind: str, model: DiTConfig, batch: int, tokens: int = 120) -> int:
    """The most that is alive in the first two steps of a stage.

    Args:
        kind: one of `STAGES`.
        model: its `sample_size` is the side of the latents.
        batch: pictures in a step.
        tokens: of a caption.
    """
    loop = LoopConfig(steps=2, batch=batch, lr=1e-5, plain_attention=False)
    pixart = PixArtConfig(model, SamplerConfig(), LatentConfig((0.0,) * 4, (1.0,) * 4), text={}, vae={})
    place = Placement(torch.device("cpu"), torch.bfloat16)
    none: Any = None
    with warnings.catch_warnings(), OneFakeMode(), Alive() as alive:
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # PyTorch's own, when it copies
        data: Any = Imagined(model, tokens)
        stage: Distillation | Control
        if kind == "distill":
            stage = Distillation(pixart, DiT(model), none, data, DistillConfig(loop), place)
        else:
            depth = min(ControlConfig.depth, model.depth - 1)
            stage = Control(pixart, DiT(model), none, data, ControlConfig(loop, depth), place)
        average = copy.deepcopy(stage.result)
        alive.peak = alive.bytes  # what making the modules took does not count
        for _ in range(2):
            _step(stage, data.draw(batch))
    del average
    return alive.peak


def _step(stage: Distillation | Control, batch: Batch) -> None:
    """What `training.loop.run` does, but for the moving average, whose arithmetic is in place."""
    noise, t = torch.zeros_like(batch.latents), torch.zeros(len(batch.latents), dtype=torch.long)
    if isinstance(stage, Distillation):
        loss, _ = stage.loss_of(batch, noise, t)
    else:
        loss = stage.errors(batch, noise, t, torch.zeros_like(t, dtype=torch.bool)).mean()
    loss.backward()
    nn.utils.clip_grad_norm_([parameter for parameter in stage.model.parameters() if parameter.requires_grad], 1.0)
    for optimizer in stage.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    stage.averaged(None)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.published.memory", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="sides of pictures (512 1024)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 12], help="pictures in a step (1 4 12)")
    parser.add_argument("--depth", type=int, default=DiTConfig.depth, help="blocks (28, PixArt-XL/2)")
    args = parser.parse_args(arguments)
    print("| stage | pixels | " + " | ".join(f"batch {batch}, GB" for batch in args.batches) + " |")
    print("|---|---:|" + "---:|" * len(args.batches))
    for kind in STAGES:
        for size in args.sizes:
            model = DiTConfig(sample_size=size // 8, depth=args.depth, size_conditions=size > 512)
            cells = [f"{peak_bytes(kind, model, batch) / 1e9:.1f}" for batch in args.batches]
            print(f"| {kind} | {size} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
