"""What the control branch learns from: latents of pictures and of their edges, encoded beforehand."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models.edges import SoftEdge
from training.data import emoji
from training.loop import step_generator
from training.precision import mixed_precision
from training.vae import augment, fingerprint
from training.workspace import Workspace


@dataclass(frozen=True)
class ControlPairs:
    """`pictures` and `edges`: normalised latents, float16 [N, 4, h, w]; `maps`: the edges themselves, uint8 [N, H, W];
    `pairs`: subject and colour indices [N, 2].
    """

    pictures: Tensor
    edges: Tensor
    maps: Tensor
    pairs: Tensor


def soft_edge_maps(pictures: Tensor) -> Tensor:
    """Edge maps uint8 [B, H, W, 3] of pictures [B, 3, H, W] in -1..1."""
    edges: Tensor = SoftEdge()(((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1))
    return edges


def as_pictures(edges: Tensor) -> Tensor:
    """Edge maps uint8 [B, H, W, 3] → pictures [B, 3, H, W] in -1..1."""
    return edges.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(space: Workspace, pictures: Tensor) -> Tensor:
    """Normalised latents of pictures [B, 3, H, W] in -1..1."""
    with mixed_precision():
        raw = space.vae.encode(pictures).latent_dist.mean.float()
    mean = torch.tensor(space.latents.config.mean)[:, None, None]
    std = torch.tensor(space.latents.config.std)[:, None, None]
    return (raw - mean) / std


def encode_pairs(space: Workspace, views: int, store: Path) -> ControlPairs:
    """Encode `views` zoomed, shifted and mirrored views of every picture that is not held out, or read them back."""
    key = f"{fingerprint(space.vae)}/{views}"
    names = [field.name for field in fields(ControlPairs)]
    if store.exists():
        saved = torch.load(store, weights_only=True)
        if saved["key"] == key and all(name in saved for name in names):
            return ControlPairs(*(saved[name] for name in names))
    seen = torch.tensor([i for i, s in enumerate(space.data.subjects) if not emoji.is_held_out_picture(s)])
    colors = emoji.background_colors()
    source = torch.from_numpy(space.data.pictures)
    chunks = []
    for chunk in tqdm(range(views * len(seen) // 16), desc="encoding edges", mininterval=5):
        generator = step_generator(1, chunk)
        subject = seen[(torch.arange(16) + chunk * 16) % len(seen)]
        color = torch.randint(len(colors), (16,), generator=generator)
        shown = emoji.composite(augment(source[subject], generator), colors[color])
        edges = soft_edge_maps(shown)
        latents = (encode(space, shown).half(), encode(space, as_pictures(edges)).half())
        chunks.append((*latents, edges[..., 0].clone(), torch.stack([subject, color], dim=1)))
    result = ControlPairs(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))
    torch.save({"key": key, **{name: getattr(result, name) for name in names}}, store)
    return result
