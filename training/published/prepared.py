"""Pictures and captions as the transformer sees them, encoded once: training then needs neither T5 nor VAE.

A folder holds `prepared.json` and shards. A shard is one safetensors file of pictures of one size: `latents` and,
for control, `edges` [N, C, h, w], `caption` [N, L, W], all float16, and `tokens` [N], how many of L are real.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints import Checkpoint
from models.config import from_json, to_json
from training.files import written_whole
from training.origin import fingerprint

DESCRIPTION = "prepared.json"
EMPTY = "empty.safetensors"


@dataclass(frozen=True)
class Batch:
    """`latents` and `edges` [B, C, h, w] in float32, `caption` [B, L, W], `mask` [B, L]."""

    latents: Tensor
    caption: Tensor
    mask: Tensor
    edges: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`."""
        edges = None if self.edges is None else self.edges.to(device)
        return Batch(self.latents.to(device), self.caption.to(device), self.mask.to(device), edges)


def encoders(checkpoint: Checkpoint) -> str:
    """A digest of what encodes captions and pictures: T5, the caption projection and the VAE.

    Of weights in half precision, because a copy in that precision encodes the same. Of T5's 4.8 B only the norms are
    read, which any training of it changes.
    """
    found = {f"vae.{name}": value for name, value in checkpoint.vae.items()}
    for name, value in checkpoint.text_encoder.items():
        if name.startswith("projection.") or value.ndim == 1:
            found[f"text_encoder.{name}"] = value
    return fingerprint({name: value.half() for name, value in found.items()})


def describe(folder: Path, model: str, checkpoint: Checkpoint, edges: str | None, pictures: str) -> None:
    """Say what the folder's shards are made with; a folder that says otherwise is left as it is.

    Args:
        model: how it is called.
        edges: which kind, if any.
        pictures: which pictures, and how they are dealt to shards; any text that is another for others.

    Raises:
        ValueError: it holds shards of another model, of other edges or of other pictures.
    """
    about = {"model": model, "edges": edges, "pictures": pictures, "config": to_json(checkpoint.config)}
    about["encoders"] = encoders(checkpoint)
    text = json.dumps(about, indent=1) + "\n"
    path = folder / DESCRIPTION
    if path.exists() and path.read_text() != text:
        raise ValueError(f"{folder}: was prepared with another model, other edges or other pictures; name a new folder")
    with written_whole(path) as scratch:
        scratch.write_text(text)


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a shard so that it is there whole or not at all."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    with written_whole(path) as scratch:
        save_file({name: value.contiguous().cpu() for name, value in half.items()}, scratch)


class PreparedSet:
    """The shards of a folder, on disk until they are drawn from."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: the folder was not prepared, or not to its end.
        """
        try:
            text = (folder / DESCRIPTION).read_text()
            description: dict[str, Any] = json.loads(text)
            self.digest = hashlib.sha256(text.encode()).hexdigest()  # of what the shards were made from
            self.model: str = description["model"]
            self.config = from_json(description["config"])
            self.encoders: str | None = description.get("encoders")  # an earlier version did not say
            self.shards = [safe_open(path, "pt") for path in sorted(folder.glob("shard-*.safetensors"))]
            empty = _rows(safe_open(folder / EMPTY, "pt"), [0])
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{folder}: is not, or not completely, prepared ({error})") from error
        if not self.shards:
            raise ValueError(f"{folder}: holds no shard")
        self.empty = empty["caption"], empty["mask"]
        self.counts = torch.tensor([float(shard.get_slice("tokens").get_shape()[0]) for shard in self.shards])
        self.has_edges = all("edges" in set(shard.keys()) for shard in self.shards)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """`count` pictures of one size; over many draws every picture comes equally often."""
        which = int(torch.multinomial(self.counts, 1, generator=generator))
        rows = torch.randint(int(self.counts[which]), (count,), generator=generator)
        return _batch(_rows(self.shards[which], rows.tolist()))

    def first(self, count: int) -> Batch:
        """The first shard's first pictures, at most `count`: for samples."""
        return _batch(_rows(self.shards[0], range(min(count, int(self.counts[0])))))

    def check(self, checkpoint: Checkpoint) -> None:
        """
        Raises:
            ValueError: captions and latents are not what this model's transformer is given.
        """
        if checkpoint.config.dit != self.config.dit:
            raise ValueError(f"this data was prepared for {self.model}, whose transformer is another")
        if self.encoders is None:
            raise ValueError("this data was prepared by an earlier version, which did not record the encoders")
        if checkpoint.config.latent != self.config.latent or encoders(checkpoint) != self.encoders:
            raise ValueError(f"this data was prepared for {self.model}, which encodes captions or pictures differently")


def _batch(rows: Mapping[str, Tensor]) -> Batch:
    edges = rows["edges"].float() if "edges" in rows else None
    return Batch(rows["latents"].float(), rows["caption"], rows["mask"], edges)


def _rows(shard: Any, rows: Sequence[int]) -> dict[str, Tensor]:
    names: list[str] = list(shard.keys())
    found = {name: torch.cat([shard.get_slice(name)[i : i + 1] for i in rows]) for name in names}
    tokens = found.pop("tokens")
    found["mask"] = torch.arange(found["caption"].shape[1]) < tokens[:, None]
    found["caption"] = found["caption"].float()
    return found
