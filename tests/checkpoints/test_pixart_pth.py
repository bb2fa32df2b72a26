"""PixArt's .pth files: the same random weights in both published formats give the identical model."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints import Checkpoint, CheckpointError, load_checkpoint
from tests.checkpoints.published import original_branch, original_names, save_components, save_pipeline, transformer

FUSED = "blocks.1.attn.qkv.weight"


def same(first: dict[str, Tensor] | None, second: dict[str, Tensor] | None) -> bool:
    assert first and second
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_same_base(first: Checkpoint, second: Checkpoint) -> None:
    assert first.config.dit == second.config.dit
    assert same(first.dit, second.dit)
    assert same(first.text_encoder, second.text_encoder)
    assert same(first.vae, second.vae)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """T5 and VAE where PixArt's hub repository keeps them."""
    save_components(tmp_path, "t5-v1_1-xxl", "sd-vae-ft-ema", "t5-v1_1-xxl")
    return tmp_path


@pytest.mark.parametrize("size", [8, 64, 128])
@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_is_the_model_of_the_diffusers_folder(tmp_path: Path, size: int, nested: str | None) -> None:
    folder = tmp_path / "pipeline"
    dit, _, _ = save_pipeline(folder, sample_size=size)
    state = original_names(dit)
    torch.save({nested: state, "epoch": 3} if nested else state, tmp_path / "base.pth")
    checkpoint = load_checkpoint(tmp_path / "base.pth", components=folder)
    assert_same_base(checkpoint, load_checkpoint(folder))
    assert checkpoint.config.max_tokens == 120
    assert checkpoint.config.controlnet_depth == 0
    assert checkpoint.controlnet is None


def test_parts_beside_the_file(layout: Path) -> None:
    state = original_names(transformer())
    state["y_embedder.y_embedding"] = torch.zeros(77, 16)
    torch.save(state, layout / "base.pth")
    checkpoint = load_checkpoint(layout / "base.pth")
    assert checkpoint.tokenizer == layout / "t5-v1_1-xxl"
    assert checkpoint.config.max_tokens == 77
    (layout / "sd-vae-ft-ema").rename(layout / "elsewhere")
    with pytest.raises(CheckpointError, match="has no folder vae or sd-vae-ft-ema"):
        load_checkpoint(layout / "base.pth")


def test_resolution_without_stored_positions(layout: Path) -> None:
    for conditions in (True, False):
        state = original_names(transformer(use_additional_conditions=conditions))
        del state["pos_embed"]
        torch.save(state, layout / "base.pth")
        if conditions:
            assert load_checkpoint(layout / "base.pth").config.dit.sample_size == 128
        else:
            with pytest.raises(CheckpointError, match="missing: pos_embed"):
                load_checkpoint(layout / "base.pth")


@pytest.mark.parametrize("depth", [1, 2])
def test_control_branch(tmp_path: Path, depth: int) -> None:
    folder = tmp_path / "pipeline"
    dit, _, _ = save_pipeline(folder)
    state = original_branch(original_names(dit), depth)
    torch.save({"state_dict": state}, tmp_path / "control.pth")

    whole = load_checkpoint(tmp_path / "control.pth", components=folder)
    assert_same_base(whole, load_checkpoint(folder))
    attached = load_checkpoint(folder, controlnet=tmp_path / "control.pth")
    for checkpoint in (whole, attached):
        assert checkpoint.config.controlnet_depth == depth
        branch = checkpoint.controlnet
        assert branch is not None
        assert len(branch) == depth * (15 + 2) + 2
        for index in range(depth):
            copied, after = f"controlnet.{index}.copied_block", f"controlnet.{index}.after_proj"
            assert torch.equal(
                branch[f"blocks.{index}.cross.kv.weight"], state[f"{copied}.cross_attn.kv_linear.weight"]
            )
            assert torch.equal(branch[f"blocks.{index}.scale_shift_table"], state[f"{copied}.scale_shift_table"])
            assert torch.equal(branch[f"after_proj.{index}.bias"], state[f"{after}.bias"])
        assert torch.equal(branch["before_proj.weight"], state["controlnet.0.before_proj.weight"])

    assert attached.controlnet is not None
    save_file({name: tensor.clone() for name, tensor in attached.controlnet.items()}, tmp_path / "ours.safetensors")
    again = load_checkpoint(folder, controlnet=tmp_path / "ours.safetensors")
    assert same(again.controlnet, attached.controlnet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FUSED: None}, r"missing: blocks\.1\.attn\.qkv\.weight"),
        ({"extra.weight": torch.zeros(1)}, r"surplus: extra\.weight"),
        ({FUSED: torch.zeros(5, 144)}, r"blocks\.1\.attn\.qkv\.weight is \(5, 144\) instead of \(432, 144\)"),
        ({"x_embedder.proj.weight": None}, r"missing: x_embedder\.proj\.weight"),
        ({"x_embedder.proj.weight": torch.zeros(144, 16)}, r"x_embedder\.proj\.weight is \(144, 16\)"),
        ({"x_embedder.proj.weight": torch.zeros(100, 4, 2, 2)}, "width 100 with 3 blocks"),
    ],
)
def test_names_the_wrong_key(layout: Path, change: dict[str, Tensor | None], message: str) -> None:
    state = {**original_names(transformer()), **change}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, layout / "base.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(layout / "base.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controlnet.0.before_proj.bias": None}, r"missing: controlnet\.0\.before_proj\.bias"),
        ({"controlnet.1.before_proj.bias": torch.zeros(144)}, r"surplus: controlnet\.1\.before_proj\.bias"),
        ({"controlnet.1.after_proj.bias": torch.zeros(3)}, r"after_proj\.bias is \(3,\) instead of \(144,\)"),
        ({"base_model.extra": torch.zeros(3)}, r"surplus: base_model\.extra|surplus: extra"),
        ({"extra": torch.zeros(3)}, "surplus: extra"),
        ({f"controlnet.{index}.after_proj.bias": torch.zeros(144) for index in range(9)}, "9 blocks does not fit"),
    ],
)
def test_names_the_wrong_key_of_a_branch(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    dit, _, _ = save_pipeline(tmp_path)
    state = {**original_branch(original_names(dit), 2), **change}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "control.pth")
    for arguments in ((tmp_path, tmp_path / "control.pth"), (tmp_path / "control.pth", None)):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(arguments[0], controlnet=arguments[1])


def test_a_base_is_no_branch(layout: Path) -> None:
    torch.save(original_names(transformer()), layout / "base.pth")
    with pytest.raises(CheckpointError, match="holds no controlnet"):
        load_checkpoint(layout / "base.pth", controlnet=layout / "base.pth")


class _Harm:
    """A pickle of this would run code when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": _Harm()}, "pickled with more than plain tensors"),
        ({"a": 3}, "'a' is a int, not a tensor"),
        ([torch.zeros(1)], "holds a list, not named tensors"),
    ],
)
def test_refuses_pickles_of_other_things(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "base.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "base.pth")


def test_refuses_what_is_no_pytorch_file(tmp_path: Path) -> None:
    path = tmp_path / "base.pth"
    path.write_bytes(pickle.dumps({"a": _Harm()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"base\.pth: is"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"base\.pth: is"):
        load_checkpoint(path)
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"base\.pth: is"):
        load_checkpoint(path)
