"""Our own layout: what is written is read back, in a third of the memory, and every wrong key is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints import Checkpoint, CheckpointError, load_checkpoint, load_native, save_native
from models.checkpoints.writer import write_safetensors
from models.config import to_json
from tests.checkpoints.published import original_branch, original_names, save_pipeline


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    """With a control branch of two blocks."""
    dit, _, _ = save_pipeline(tmp_path / "pipeline")
    torch.save(original_branch(original_names(dit), 2), tmp_path / "control.pth")
    return load_checkpoint(tmp_path / "pipeline", controlnet=tmp_path / "control.pth")


def states(checkpoint: Checkpoint) -> dict[str, Tensor]:
    assert checkpoint.controlnet is not None
    parts = {
        "dit": checkpoint.dit,
        "text": checkpoint.text_encoder,
        "vae": checkpoint.vae,
        "control": checkpoint.controlnet,
    }
    return {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_round_trip(source: Checkpoint, tmp_path: Path, dtype: torch.dtype) -> None:
    save_native(tmp_path / "native", source, dtype)
    loaded = load_checkpoint(tmp_path / "native")
    assert loaded.config == source.config
    wanted, found = states(source), states(loaded)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], tensor.to(dtype)) for name, tensor in wanted.items())
    # Saved again, nothing changes.
    save_native(tmp_path / "again", loaded, dtype)
    for path in (tmp_path / "native").rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(tmp_path / "native")).read_bytes() == path.read_bytes()


def test_the_tied_embedding_is_stored_once(source: Checkpoint, tmp_path: Path) -> None:
    save_native(tmp_path / "native", source)
    with safe_open(tmp_path / "native/weights/text_encoder.safetensors", framework="pt") as file:
        assert "t5.shared.weight" in file.keys()  # noqa: SIM118 - not a mapping
        assert "t5.encoder.embed_tokens.weight" not in file.keys()  # noqa: SIM118


def test_reads_a_bundle(source: Checkpoint, tmp_path: Path) -> None:
    save_native(tmp_path / "native", source)
    (tmp_path / "native/config.json").unlink()
    manifest = {"format_version": 1, "model": to_json(source.config)}
    (tmp_path / "native/manifest.json").write_text(json.dumps(manifest))
    assert load_native(tmp_path / "native").config == source.config


@pytest.mark.parametrize("part", ["dit", "text_encoder", "vae", "controlnet"])
def test_names_the_wrong_key(source: Checkpoint, tmp_path: Path, part: str) -> None:
    save_native(tmp_path / "native", source)
    path = tmp_path / f"native/weights/{part}.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = sorted(tensors)[-1]
    short = name.removeprefix("t5.")

    def message(change: dict[str, Tensor | None]) -> str:
        kept = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        path.unlink()
        save_file(kept, path)
        with pytest.raises(CheckpointError) as raised:
            load_native(tmp_path / "native")
        return str(raised.value)

    assert f"{part}.safetensors: missing: {short}" in message({name: None})
    assert f"{part}.safetensors: surplus: extra" in message({"extra": torch.zeros(1)})
    assert f"{short} is (9, 9) instead of" in message({name: torch.zeros(9, 9)})
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{part}\.safetensors: no such file"):
        load_native(tmp_path / "native")


def test_names_the_wrong_setting(source: Checkpoint, tmp_path: Path) -> None:
    save_native(tmp_path / "native", source)
    path = tmp_path / "native/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    with pytest.raises(CheckpointError, match=r"config\.json: unknown key colour"):
        load_native(tmp_path / "native")


def test_values_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match=r"big does not fit into torch\.float16"):
        write_safetensors(path, {"small": torch.ones(2), "big": torch.tensor([1.0, 7e4])}, torch.float16)
    assert not path.exists()
    with pytest.raises(CheckpointError, match=r"odd is torch\.complex64"):
        write_safetensors(path, {"odd": torch.zeros(2, dtype=torch.complex64)}, torch.float16)


def test_writes_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "strided": torch.randn(5, 7).T,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "whole": torch.arange(3),
        "é": torch.tensor([True, False, True]),
        "last": torch.randn(3),
    }
    write_safetensors(tmp_path / "weights.safetensors", tensors, torch.bfloat16)
    read = load_file(tmp_path / "weights.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor)
