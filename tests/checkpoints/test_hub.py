"""Hub ids, answered by the hub client's own cache without a network."""

import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from models.checkpoints import CheckpointError, load_checkpoint
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
