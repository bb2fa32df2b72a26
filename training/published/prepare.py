"""`python -m training.published.prepare --model MODEL --pictures FOLDER --out FOLDER`: encode pictures and captions.

What was encoded before a stop is not encoded again when the command is repeated.
"""

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from models.checkpoints import Checkpoint, CheckpointError, load_checkpoint, write_tokenizer
from models.checkpoints.build import build_text_encoder, build_vae
from models.checkpoints.hed import read_hed
from models.edges import SoftEdge
from models.vae import VaeEncoder
from training.published.device import Placement
from training.published.pictures import Captioned, Size, by_size, fitted, read_captions
from training.published.prepared import EMPTY, describe, write_shard

T = TypeVar("T")


class Encoders:
    """T5 with the caption projection, the VAE's encoder and an edge detector, on one device.

    T5 runs in bfloat16 where the device has it (its residuals overflow float16), VAE and edges always in float32.
    """

    def __init__(self, checkpoint: Checkpoint, edges: nn.Module | None, place: Placement) -> None:
        self.device = device = place.device
        self.max_tokens = checkpoint.config.max_tokens
        self.text = build_text_encoder(checkpoint, place.half).to(device)
        self.vae = VaeEncoder(build_vae(checkpoint), checkpoint.config.latent).to(device)
        self.edges = None if edges is None else edges.to(device)
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "tokenizer.json"
            write_tokenizer(checkpoint.tokenizer, path)
            self.tokenizer = Tokenizer.from_file(str(path))

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`caption` [B, max_tokens, W] and `tokens` [B]; longer texts are cut."""
        rows = [encoding.ids[: self.max_tokens] for encoding in self.tokenizer.encode_batch(list(texts))]
        ids = torch.zeros(len(rows), self.max_tokens, dtype=torch.long)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = torch.tensor(values)
        tokens = torch.tensor([len(values) for values in rows])
        mask = torch.arange(self.max_tokens) < tokens[:, None]
        caption = self.text(ids.to(self.device), mask.to(self.device))
        # What stands at padded places means nothing, and need not fit into float16.
        return {"caption": (caption.cpu() * mask[..., None]).float(), "tokens": tokens.short()}

    @torch.no_grad()
    def pictures(self, paths: Sequence[Path], size: Size) -> dict[str, Tensor]:
        """`latents` and, with a detector, `edges`, both [B, C, h, w]."""
        images = torch.from_numpy(np.stack([fitted(path, size) for path in paths])).to(self.device)
        found = {"latents": self.vae(images)}
        if self.edges is not None:
            found["edges"] = self.vae(self.edges(images))
        return {name: value.cpu() for name, value in found.items()}

    def shard(self, pictures: Sequence[Captioned], size: Size, batch: int) -> dict[str, Tensor]:
        """All tensors of a shard of pictures of one size."""
        parts = [
            self.captions([picture.text for picture in some]) | self.pictures([picture.path for picture in some], size)
            for some in _runs(pictures, batch)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def prepare(encoders: Encoders, groups: dict[Size, list[Captioned]], out: Path, *, batch: int, rows: int) -> None:
    """Write every shard that is not there yet, `rows` pictures in each, and the empty caption."""
    work = [
        (out / f"shard-{height}x{width}-{number:05d}.safetensors", (height, width), some)
        for (height, width), pictures in groups.items()
        for number, some in enumerate(_runs(pictures, rows))
    ]
    with tqdm(total=sum(len(some) for _, _, some in work), desc="encoding", unit="picture") as bar:
        for path, size, some in work:
            if not path.exists():
                write_shard(path, encoders.shard(some, size, batch))
            bar.update(len(some))
    write_shard(out / EMPTY, encoders.captions([""]))


def _runs(items: Sequence[T], count: int) -> Iterable[Sequence[T]]:
    return (items[start : start + count] for start in range(0, len(items), count))


def main(arguments: list[str] | None = None) -> None:
    """The command.

    Raises:
        SystemExit: with the reason, if the model or a picture cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m training.published.prepare", description=__doc__)
    parser.add_argument("--model", required=True, help="checkpoint: a folder (ours or diffusers'), .pth or hub id")
    parser.add_argument("--components", help="T5, VAE and tokenizer for a .pth: a folder or hub id")
    parser.add_argument("--pictures", type=Path, required=True, help="folder with pictures and metadata.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="where the shards go")
    edges = parser.add_mutually_exclusive_group()
    edges.add_argument("--hed", type=Path, help="also encode edges, for control: HED's, with the weights in this file")
    edges.add_argument("--soft-edges", action="store_true", help="also encode edges: the demo model's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="pictures encoded at a time (8)")
    parser.add_argument("--rows", type=int, default=512, help="pictures in a shard (512)")
    args = parser.parse_args(arguments)
    try:
        pictures = read_captions(args.pictures)
        checkpoint = load_checkpoint(args.model, components=args.components)
        dit = checkpoint.config.dit
        kind = "hed" if args.hed else "soft" if args.soft_edges else None
        root = args.pictures.resolve()
        named = [(one.path.relative_to(root).as_posix(), one.text) for one in pictures]
        listing = hashlib.sha256(repr(named).encode()).hexdigest()
        describe(args.out, args.model, checkpoint, kind, f"{listing}, {args.rows} in a shard")
        groups = by_size(pictures, 8 * dit.sample_size, dit.size_conditions)
        detector = read_hed(args.hed) if args.hed else SoftEdge() if args.soft_edges else None
        encoders = Encoders(checkpoint, detector, Placement.on(args.device))
        prepare(encoders, groups, args.out, batch=args.batch, rows=args.rows)
    except (CheckpointError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    for (height, width), some in groups.items():
        print(f"{width}x{height}: {len(some)} pictures")


if __name__ == "__main__":
    main()
