"""What the control branch learns from: latents of pictures, of their edges and of sketches, encoded beforehand."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from models.edges import SoftEdge
from training.data import emoji
from training.data.sketches import sketch
from training.files import save_whole
from training.loop import step_generator
from training.origin import fingerprint
from training.precision import mixed_precision
from training.vae import augment
from training.workspace import Workspace


@dataclass(frozen=True)
class ControlPairs:
    """`pictures`, their `edges` and `sketches`: normalised latents, float16 [N, 4, h, w]; `maps`: the edges themselves,
    uint8 [N, H, W]; `pairs`: subject and colour indices [N, 2].
    """

    pictures: Tensor
    edges: Tensor
    sketches: Tensor
    maps: Tensor
    pairs: Tensor


def soft_edge_maps(pictures: Tensor) -> Tensor:
    """Edge maps uint8 [B, H, W, 3] of pictures [B, 3, H, W] in -1..1."""
    edges: Tensor = SoftEdge()(((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1))
    return edges


def sketches(edges: Tensor, opacity: Tensor, rng: np.random.Generator) -> Tensor:
    """Sketches uint8 [B, H, W, 3] of pictures with edge maps [B, H, W, 3], whose subjects cover `opacity` [B, H, W]."""
    pairs = zip(edges[..., 0].numpy(), opacity.numpy(), strict=True)
    return torch.from_numpy(np.stack([sketch(edge, cover, rng) for edge, cover in pairs]))[..., None].expand_as(edges)


def as_pictures(edges: Tensor) -> Tensor:
    """Edge maps uint8 [B, H, W, 3] → pictures [B, 3, H, W] in -1..1."""
    return edges.permute(0, 3, 1, 2).float() / 127.5 - 1


def bend(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, stretch and bend pictures [B, C, S, S], some a little and some much: nobody draws an apple like the data's.

    Up to 15 degrees, a quarter in width or height, and a tenth of the picture's width here and there; smaller by a
    tenth, so that little is pushed over the border.
    """
    batch, size = pictures.shape[0], pictures.shape[-1]
    angle, stretch = torch.empty(2, batch).uniform_(-0.25, 0.25, generator=generator)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(batch, 2, 2)
    scale = 1.1 * torch.stack([1 + stretch.clamp(min=0), 1 - stretch.clamp(max=0)], dim=1)
    theta = torch.cat([rotation * scale[:, None, :], torch.zeros(batch, 2, 1)], dim=2)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    much = torch.empty(batch, 1, 1, 1).uniform_(0, 0.08, generator=generator)
    moves = F.interpolate(torch.randn(batch, 2, 4, 4, generator=generator), (size, size), mode="bicubic")
    return F.grid_sample(pictures.float(), grid + (much * moves).permute(0, 2, 3, 1), align_corners=False)


@torch.no_grad()
def encode(space: Workspace, pictures: Tensor) -> Tensor:
    """Normalised latents of pictures [B, 3, H, W] in -1..1."""
    with mixed_precision():
        raw = space.vae.encode(pictures).latent_dist.mean.float()
    mean = torch.tensor(space.latents.config.mean)[:, None, None]
    std = torch.tensor(space.latents.config.std)[:, None, None]
    return (raw - mean) / std


def encode_pairs(space: Workspace, views: int, store: Path) -> ControlPairs:
    """Encode `views` views of every picture that is not held out, or read them back.

    Views are zoomed, shifted and mirrored; all but the first of each picture are bent too.
    """
    key = f"{fingerprint(space.vae.state_dict())}/{views}/bent"
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
        whole = source[subject]
        view = augment(bend(whole, generator) if chunk * 16 >= len(seen) else whole, generator)
        shown = emoji.composite(view, colors[color])
        edges = soft_edge_maps(shown)
        drawn = sketches(edges, view[:, 3].byte(), np.random.default_rng((1, chunk)))
        latents = [encode(space, images).half() for images in (shown, as_pictures(edges), as_pictures(drawn))]
        chunks.append((*latents, edges[..., 0].clone(), torch.stack([subject, color], dim=1)))
    result = ControlPairs(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))
    save_whole({"key": key, **{name: getattr(result, name) for name in names}}, store)
    return result
