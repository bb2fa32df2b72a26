"""Hub ids, answered by the hub client's own cache without a network."""

import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.utils._paths import filter_repo_objects

from models.checkpoints import CheckpointError, load_checkpoint
from models.checkpoints.hub import IGNORED, wanted
from tests.checkpoints.published import original_names, save_pipeline

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of an offline client, with `owner/tiny` in it."""
    repository = tmp_path / "hub/models--owner--tiny"
    snapshot = repository / "snapshots" / REVISION
    save_pipeline(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(REVISION)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", os.fspath(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_is_the_repositorys_model(cache: Path, tmp_path: Path) -> None:
    checkpoint, local = load_checkpoint("owner/tiny"), load_checkpoint(cache)
    assert checkpoint.config == local.config
    assert all(torch.equal(checkpoint.dit[name], tensor) for name, tensor in local.dit.items())


def test_gives_the_parts_that_a_pth_lacks(cache: Path, tmp_path: Path) -> None:
    from diffusers import PixArtTransformer2DModel

    torch.save(original_names(PixArtTransformer2DModel.from_pretrained(cache / "transformer")), tmp_path / "base.pth")
    checkpoint = load_checkpoint(tmp_path / "base.pth", components="owner/tiny")
    assert all(torch.equal(checkpoint.vae[name], tensor) for name, tensor in load_checkpoint(cache).vae.items())


def test_names_the_unknown_repository(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="owner/other: cannot be fetched from the hub"):
        load_checkpoint("owner/other")
    with pytest.raises(CheckpointError, match=r"components are for a \.pth file"):
        load_checkpoint("owner/tiny", components="owner/other")


PIXART = [  # as PixArt-alpha/PixArt-alpha has them
    "PixArt-XL-2-1024-MS.pth",
    "README.md",
    "sd-vae-ft-ema/config.json",
    "sd-vae-ft-ema/diffusion_pytorch_model.bin",
    "t5-v1_1-xxl/config.json",
    "t5-v1_1-xxl/pytorch_model-00001-of-00002.bin",
    "t5-v1_1-xxl/pytorch_model-00002-of-00002.bin",
    "t5-v1_1-xxl/pytorch_model.bin.index.json",
    "t5-v1_1-xxl/spiece.model",
]
DIFFUSERS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/pytorch_model.bin",
    "tokenizer/spiece.model",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]


def test_fetches_what_is_read_and_no_more() -> None:
    def fetched(files: list[str], transformer: bool) -> list[str]:
        return list(filter_repo_objects(files, allow_patterns=wanted(transformer), ignore_patterns=IGNORED))

    unread = {"text_encoder/pytorch_model.bin", "transformer/diffusion_pytorch_model.fp16.safetensors"}
    assert fetched(DIFFUSERS, True) == [name for name in DIFFUSERS if name not in unread]
    for file in fetched(DIFFUSERS, False):
        assert not file.startswith(("transformer/", "scheduler/")) and file not in unread
    assert fetched(PIXART, False) == PIXART[2:]
