"""What a stage keeps for the next one is whole or not there: here the disk takes only the first bytes of a file."""

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.conftest import draw_pictures
from tests.training.test_stages import DEMO_BUNDLE, EMOJI_RECIPE
from training import config as recipes
from training import vae as vae_stage
from training.base import adopt
from training.control_pairs import encode_pairs
from training.data import captions, emoji
from training.data.sources import CAPTIONS, PICTURES
from training.files import save_whole
from training.latents import encode_all
from training.loop import LoopConfig
from training.published.prepared import write_shard
from training.workspace import Workspace

Writer = Callable[[Path], Path]


@contextmanager
def little_room(size: int = 4096) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def latents(folder: Path) -> Path:
    config = vae_stage.VaeConfig(LoopConfig(steps=1, batch=1, lr=1e-3), channels=(8, 8, 8, 8), norm_groups=4)
    encode_all(vae_stage.build(config, 32).eval(), emoji.load(folder / "data", 32), folder / "latents.pt", "any")
    return folder / "latents.pt"


def control_latents(folder: Path) -> Path:
    space, _ = Workspace.of_bundle(recipes.read(EMOJI_RECIPE), folder, DEMO_BUNDLE)
    encode_pairs(space, 1, folder / "control-latents.pt")
    return folder / "control-latents.pt"


def pictures(folder: Path) -> Path:
    """From what npm has unpacked."""
    assets, entries = (
        folder / f"{package.name.replace('/', '-').lstrip('@')}-{package.version}" for package in (PICTURES, CAPTIONS)
    )
    (assets / "assets").mkdir(parents=True, exist_ok=True)
    (entries / "en").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(assets / "assets" / "a1.webp")
    (entries / "en" / "data.json").write_text(json.dumps([{"hexcode": "A1", "label": "apple", "group": 4, "order": 1}]))
    emoji.load(folder, 64)
    return folder / "pictures-64.npz"


def tokenizer(folder: Path) -> Path:
    captions.load_tokenizer(folder / "tokenizer.json", emoji.load(folder / "data", 32).subjects, 300)
    return folder / "tokenizer.json"


def adopted_tokenizer(folder: Path) -> Path:
    save_whole({}, folder / "vae" / "checkpoint.pt")  # so that the autoencoder is kept
    adopt(DEMO_BUNDLE, folder)
    return folder / "tokenizer.json"


def shard(folder: Path) -> Path:
    write_shard(folder / "shard.safetensors", {"latents": torch.zeros(4, 4, 64, 64)})
    return folder / "shard.safetensors"


@pytest.mark.parametrize("write", [latents, control_latents, pictures, tokenizer, adopted_tokenizer, shard])
def test_a_writer_that_is_cut_off_leaves_no_file_and_can_be_called_again(write: Writer, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "data", count=32, size=128 if write is control_latents else 32)
    with little_room(), pytest.raises(Exception):  # noqa: B017 - each library has its own
        write(tmp_path)
    path = write(tmp_path)
    assert path.stat().st_size > 4096
    assert not list(tmp_path.glob("*.partial"))
