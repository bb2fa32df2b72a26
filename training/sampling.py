"""What samplers share: tokens, noise, pictures; and the guided DDIM sampler of the teacher."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.consistency import ddim_step, guided
from training.model import TextToLatents
from training.precision import mixed_precision

if TYPE_CHECKING:
    from training.workspace import Workspace


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], limit: int, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Token ids int64 and mask bool, both [B, L]; L is the longest caption's length rounded up to `multiple`."""
    rows = [encoding.ids[:limit] for encoding in tokenizer.encode_batch(list(texts))]
    length = -(-max(map(len, rows)) // multiple) * multiple
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = torch.tensor(values)
        mask[row, : len(values)] = True
    return ids, mask


@torch.no_grad()
def ddim(
    model: TextToLatents, space: "Workspace", texts: Sequence[str], noise: Tensor, *, steps: int, guidance: float
) -> Tensor:
    """Latents [B, 4, h, w] from `steps` DDIM steps with classifier-free guidance."""
    schedule = space.schedule
    count = len(texts)
    ids, mask = tokenize(space.tokenizer, [*texts, *[""] * count], space.shape.max_tokens)
    times = [round((i + 1) * schedule.config.train_timesteps / steps) - 1 for i in reversed(range(steps))]
    latents = noise
    with mixed_precision():
        caption = model.text(ids, mask)
    for now, after in zip(times, [*times[1:], -1], strict=True):
        t = torch.full((2 * count,), now)
        with mixed_precision():
            eps = model.dit(torch.cat([latents, latents]), t, caption, mask, model.position).float()
        conditional, unconditional = eps.chunk(2)
        eps = guided(conditional, unconditional, guidance)
        latents = ddim_step(schedule, latents, eps, t[:count], torch.full((count,), after))
    return latents


def seeded_noise(seeds: Sequence[int], steps: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise [steps, B, *shape]; each picture's depends on its own seed alone."""
    rows = [torch.randn(steps, *shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows, dim=1)


@torch.no_grad()
def to_pictures(space: "Workspace", latents: Tensor) -> Tensor:
    """Normalised latents of a workspace's model → pictures [B, 3, H, W] in -1..1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (space.config.latent.mean, space.config.latent.std))
    return space.vae.decode(latents * std + mean).sample.clamp(-1, 1)
