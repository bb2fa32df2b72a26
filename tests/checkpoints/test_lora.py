"""Merged adapters against W + scale·(α/r)·B·A, written out layer by layer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints import Checkpoint, CheckpointError, load_checkpoint
from tests.checkpoints.published import save_pipeline

RANK = 3
# Layer of diffusers: our tensor, which rows of it, and inputs.
LAYERS = {
    "transformer_blocks.0.attn1.to_k": ("blocks.0.attn.qkv.weight", slice(144, 288), 144),
    "transformer_blocks.2.attn1.to_out.0": ("blocks.2.attn.proj.weight", slice(None), 144),
    "transformer_blocks.1.attn2.to_v": ("blocks.1.cross.kv.weight", slice(144, 288), 144),
    "transformer_blocks.1.ff.net.0.proj": ("blocks.1.mlp.fc1.weight", slice(None), 144),
    "adaln_single.linear": ("time_modulation.weight", slice(None), 144),
    "caption_projection.linear_1": ("projection.fc1.weight", slice(None), 16),
}


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {**checkpoint.dit, **checkpoint.text_encoder}


def factors(base: Checkpoint) -> dict[str, tuple[Tensor, Tensor]]:
    """Random B and A of each layer."""
    state = weights(base)
    return {
        layer: (torch.randn(len(state[name][rows]), RANK), torch.randn(RANK, inputs))
        for layer, (name, rows, inputs) in LAYERS.items()
    }


def expected(base: Checkpoint, pairs: dict[str, tuple[Tensor, Tensor]], gain: float) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in weights(base).items()}
    for layer, (up, down) in pairs.items():
        name, rows, _ = LAYERS[layer]
        state[name][rows] += gain * (up @ down)
    return state


def assert_equal(checkpoint: Checkpoint, wanted: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    found = weights(checkpoint)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    save_pipeline(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.mark.parametrize("prefix", ["", "transformer.", "unet.", "base_model.model.", "unet.base_model.model."])
@pytest.mark.parametrize(
    ("a", "b"), [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_A.default", "lora_B.default")]
)
def test_merges(pipeline: Path, tmp_path: Path, prefix: str, a: str, b: str) -> None:
    base = load_checkpoint(pipeline)
    pairs = factors(base)
    tensors: dict[str, Tensor] = {}
    for layer, (up, down) in pairs.items():
        tensors |= {f"{prefix}{layer}.{a}.weight": down, f"{prefix}{layer}.{b}.weight": up}
    save_file(tensors, tmp_path / "lora.safetensors")
    before = {name: tensor.clone() for name, tensor in weights(base).items()}
    assert_equal(load_checkpoint(pipeline, lora=tmp_path / "lora.safetensors"), expected(base, pairs, 1.0))
    merged = load_checkpoint(pipeline, lora=tmp_path / "lora.safetensors", lora_scale=-0.5)
    assert_equal(merged, expected(base, pairs, -0.5))
    assert_equal(base, before, tolerance=0.0)


def plain(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer, (up, down) in pairs.items():
        tensors |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    return tensors


def test_alpha_from_its_three_places(pipeline: Path, tmp_path: Path) -> None:
    base = load_checkpoint(pipeline)
    pairs = factors(base)
    tensors = plain(pairs)
    file = tmp_path / "pytorch_lora_weights.safetensors"

    save_file({**tensors, **{f"transformer.{layer}.alpha": torch.tensor(6.0) for layer in pairs}}, file)
    assert_equal(load_checkpoint(pipeline, lora=file), expected(base, pairs, 6 / RANK))
    assert_equal(load_checkpoint(pipeline, lora=tmp_path), expected(base, pairs, 6 / RANK))

    settings: dict[str, object] = {"transformer.r": RANK, "transformer.lora_alpha": 12, "transformer.use_rslora": True}
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(settings)})
    assert_equal(load_checkpoint(pipeline, lora=file), expected(base, pairs, 12 / RANK**0.5))

    pattern = {r"attn\d\..*": 9, "linear": 9, "linear_1": 9, "proj": 9}
    settings = {"r": RANK, "lora_alpha": 1, "alpha_pattern": pattern}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert_equal(load_checkpoint(pipeline, lora=file), expected(base, pairs, 9 / RANK))


def test_patch_convolution_and_output_with_variance(pipeline: Path, tmp_path: Path) -> None:
    base = load_checkpoint(pipeline)
    down, up = torch.randn(RANK, 4, 2, 2), torch.randn(144, RANK, 1, 1)
    out_down, out_up = torch.randn(RANK, 144), torch.randn(2 * 2 * 8, RANK)
    save_file(
        {
            "transformer.pos_embed.proj.lora_A.weight": down,
            "transformer.pos_embed.proj.lora_B.weight": up,
            "transformer.proj_out.lora_A.weight": out_down,
            "transformer.proj_out.lora_B.weight": out_up,
        },
        tmp_path / "lora.safetensors",
    )
    wanted = {name: tensor.clone() for name, tensor in weights(base).items()}
    wanted["patch.weight"] += torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    rows = [pixel * 8 + channel for pixel in range(4) for channel in range(4)]
    wanted["final.proj.weight"] += (out_up @ out_down)[rows]
    assert_equal(load_checkpoint(pipeline, lora=tmp_path / "lora.safetensors"), wanted)


def test_half_precision_sums_in_single(pipeline: Path, tmp_path: Path) -> None:
    base = load_checkpoint(pipeline)
    pairs = {layer: (up / 64, down / 64) for layer, (up, down) in factors(base).items()}
    save_file({name: tensor.half() for name, tensor in plain(pairs).items()}, tmp_path / "lora.safetensors")
    rounded = {layer: (up.half().float(), down.half().float()) for layer, (up, down) in pairs.items()}
    assert_equal(load_checkpoint(pipeline, lora=tmp_path / "lora.safetensors"), expected(base, rounded, 1.0), 1e-6)


LAYER = "transformer.transformer_blocks.0.attn1.to_k"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{LAYER}.lora_B.weight": None}, r"missing: transformer_blocks\.0\.attn1\.to_k has only its down factor"),
        ({f"{LAYER}.lora_B.weight": torch.zeros(144, 4)}, r"misshaped: .*to_k is \(144, 4\) times \(3, 144\)"),
        ({f"{LAYER}.lora_B.weight": torch.zeros(9, 3)}, r"misshaped: .*to_k is \(9, 144\) instead of \(144, 144\)"),
        ({f"{LAYER}.lora_magnitude_vector": torch.zeros(144)}, "surplus: .*lora_magnitude_vector is no part"),
        ({f"{LAYER}x.alpha": torch.tensor(1.0)}, r"surplus: transformer_blocks\.0\.attn1\.to_kx\.alpha"),
        (
            {f"text_encoder.q.lora_{letter}.weight": torch.zeros(3, 3) for letter in "AB"},
            r"surplus: text_encoder\.q",
        ),
    ],
)
def test_names_the_wrong_key(pipeline: Path, tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    tensors = plain(factors(load_checkpoint(pipeline))) | change  # type: ignore[operator]
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(pipeline, lora=tmp_path / "lora.safetensors")


def test_a_folder_without_an_adapter(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pytorch_lora_weights\.safetensors: no such file"):
        load_checkpoint(pipeline, lora=tmp_path)
