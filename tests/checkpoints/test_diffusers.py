"""Folders saved by diffusers and transformers: the same outputs as theirs, and every wrong key named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints import CheckpointError, build, load_checkpoint
from models.positions import sincos_positions
from tests.checkpoints.published import save_pipeline

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def assert_close(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max()
    assert scale > 0.01
    assert (actual - expected).abs().max() <= 1e-4 * scale


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite a safetensors file after `change` had its tensors."""
    tensors = load_file(path)
    change(tensors)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    path.unlink()  # the old tensors are mapped from it
    save_file(tensors, path)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("conditions", [False, True])
@pytest.mark.parametrize("channels", [4, 8])
def test_gives_the_same_noise_as_diffusers(tmp_path: Path, conditions: bool, channels: int) -> None:
    dit, t5, _ = save_pipeline(
        tmp_path, use_additional_conditions=conditions, out_channels=channels, interpolation_scale=2
    )
    checkpoint = load_checkpoint(tmp_path)
    modules = build(checkpoint)
    assert checkpoint.config.dit.interpolation_scale == 2.0
    assert checkpoint.config.dit.size_conditions == conditions

    ids = torch.randint(0, 64, (2, 7))
    mask = torch.ones(2, 7)
    mask[0, 3:] = 0
    latents, timestep = torch.randn(2, 4, 6, 10), torch.tensor([999, 19])
    sizes = [torch.tensor([[48.0, 80.0], [512.0, 300.0]]), torch.tensor([[0.6], [1.7]])] if conditions else []
    states = t5(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = dit(
        latents,
        encoder_hidden_states=states,
        timestep=timestep,
        encoder_attention_mask=mask,
        added_cond_kwargs=dict(zip(("resolution", "aspect_ratio"), sizes, strict=False)),
    ).sample[:, :4]
    position = sincos_positions(3, 5, 144, 4, 2.0)
    caption = modules.text_encoder(ids, mask)
    assert_close(modules.dit(latents, timestep, caption, mask.bool(), position, *sizes), expected)


def test_gives_the_same_pictures_and_constants(tmp_path: Path) -> None:
    _, _, vae = save_pipeline(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    modules = build(checkpoint)
    latents = torch.randn(1, 4, 4, 4)
    assert_close(modules.vae.decode(latents).sample, vae.decode(latents).sample)
    assert checkpoint.config.latent.mean == (0.0,) * 4
    assert checkpoint.config.latent.std == (4.0,) * 4
    sampler = checkpoint.config.sampler
    assert (sampler.beta_start, sampler.beta_end, sampler.origin_steps, sampler.timestep_scaling) == (
        1e-4,
        0.02,
        50,
        10.0,
    )


@pytest.mark.parametrize(("size", "scale", "conditions"), [(32, 1.0, False), (64, 1.0, False), (128, 2.0, True)])
def test_what_follows_from_the_resolution(tmp_path: Path, size: int, scale: float, conditions: bool) -> None:
    save_pipeline(tmp_path, sample_size=size)
    path = tmp_path / "transformer/config.json"
    saved = json.loads(path.read_text())
    for name in ("interpolation_scale", "use_additional_conditions"):
        saved.pop(name)  # older files lack them
    path.write_text(json.dumps(saved))
    config = load_checkpoint(tmp_path).config.dit
    assert (config.sample_size, config.interpolation_scale, config.size_conditions) == (size, scale, conditions)


def test_the_vae_of_older_files(tmp_path: Path) -> None:
    _, _, vae = save_pipeline(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".attentions." in name]:
            new = name
            for modern, former in old.items():
                new = new.replace(f".{modern}.", f".{former}.")
            tensors[new] = tensors.pop(name)

    edit(tmp_path / VAE, rename)
    loaded = load_checkpoint(tmp_path).vae
    assert all(torch.equal(loaded[name], tensor) for name, tensor in vae.state_dict().items())


def test_t5_in_pickled_shards_and_with_a_decoder(tmp_path: Path) -> None:
    _, t5, _ = save_pipeline(tmp_path)
    folder = tmp_path / "text_encoder"
    for path in folder.glob("model*"):
        path.unlink()
    state = t5.state_dict() | {"decoder.block.0.layer.0.layer_norm.weight": torch.ones(16)}
    names = sorted(state)
    shards = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for shard, members in shards.items():
        torch.save({name: state[name] for name in members}, folder / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded = load_checkpoint(tmp_path).text_encoder
    assert all(torch.equal(loaded[f"t5.{name}"], tensor) for name, tensor in t5.state_dict().items())
    (folder / "pytorch_model-2.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-2\.bin: no such file"):
        load_checkpoint(tmp_path)


def test_modules_share_the_files_memory(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    modules = build(checkpoint)
    t5 = modules.text_encoder.t5
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
    assert modules.vae.decoder.conv_in.weight.data_ptr() == checkpoint.vae["decoder.conv_in.weight"].data_ptr()
    assert build(checkpoint, torch.bfloat16).dit.patch.weight.dtype == torch.bfloat16


FUSED = "transformer_blocks.1.attn1.to_k.weight"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (TRANSFORMER, lambda t: t.pop(FUSED), r"missing: transformer_blocks\.1\.attn1\.to_k\.weight"),
        (TRANSFORMER, lambda t: t.update(extra=torch.zeros(1)), "surplus: extra"),
        (TRANSFORMER, lambda t: t.update({FUSED: torch.zeros(144, 7)}), r"to_k\.weight is \(144, 7\) instead of"),
        (TRANSFORMER, lambda t: t.update({"proj_out.bias": torch.zeros(20)}), r"proj_out\.bias is \(20,\) instead"),
        (VAE, lambda t: t.pop("decoder.conv_in.bias"), r"missing: decoder\.conv_in\.bias"),
        (VAE, lambda t: t.update(extra=torch.zeros(1)), "surplus: extra"),
        (VAE, lambda t: t.update({"decoder.conv_in.bias": torch.zeros(3)}), r"conv_in\.bias is \(3,\) instead"),
        ("t5", lambda t: t.pop("encoder.final_layer_norm.weight"), "missing: encoder.final_layer_norm.weight"),
        ("t5", lambda t: t.update(extra=torch.zeros(1)), "surplus: extra"),
        ("t5", lambda t: t.update({"shared.weight": torch.zeros(3, 16)}), r"shared\.weight is \(3, 16\) instead"),
    ],
)
def test_names_the_wrong_key(
    tmp_path: Path, file: str, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    _, t5, _ = save_pipeline(tmp_path)
    if file == "t5":  # one file instead of shards
        for path in (tmp_path / "text_encoder").glob("model*"):
            path.unlink()
        file = "text_encoder/model.safetensors"
        t5.save_pretrained(tmp_path / "text_encoder")
    edit(tmp_path / file, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer/config.json", {"activation_fn": "geglu"}, "activation_fn is 'geglu'"),
        ("transformer/config.json", {"cross_attention_dim": 7}, "cross_attention_dim is 7"),
        ("transformer/config.json", {"caption_channels": None}, "has no caption_channels"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, "beta_schedule is 'scaled_linear'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "prediction_type is"),
        ("text_encoder/config.json", {"model_type": "bert"}, "model_type is 'bert'"),
        ("vae/config.json", {"_class_name": "VQModel"}, "_class_name is 'VQModel'"),
    ],
)
def test_refuses_another_model(tmp_path: Path, file: str, changes: dict[str, object], message: str) -> None:
    save_pipeline(tmp_path)
    edit_json(tmp_path / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_names_the_missing_file(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    (tmp_path / TRANSFORMER).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors: is not a safetensors file"):
        load_checkpoint(tmp_path)
    (tmp_path / TRANSFORMER).unlink()
    with pytest.raises(CheckpointError, match=r"transformer: holds none of diffusion_pytorch_model\.safetensors"):
        load_checkpoint(tmp_path)
    (tmp_path / "transformer/config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(tmp_path)
    (tmp_path / "transformer/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no file, no folder and no hub id"):
        load_checkpoint(tmp_path / "nowhere")


def test_half_precision_files_where_there_are_no_others(tmp_path: Path) -> None:
    dit, t5, _ = save_pipeline(tmp_path)
    expected = load_checkpoint(tmp_path)
    for part in ("transformer", "text_encoder"):
        for path in (tmp_path / part).glob("*model*"):
            path.unlink()
    dit.save_pretrained(tmp_path / "transformer", variant="fp16")
    t5.save_pretrained(tmp_path / "text_encoder", variant="fp16", max_shard_size="4KB")
    assert (tmp_path / "text_encoder/model.safetensors.index.fp16.json").is_file()
    assert (tmp_path / TRANSFORMER.replace(".safetensors", ".fp16.safetensors")).is_file()
    loaded = load_checkpoint(tmp_path)
    assert all(torch.equal(loaded.dit[name], tensor) for name, tensor in expected.dit.items())
    assert all(torch.equal(loaded.text_encoder[name], tensor) for name, tensor in expected.text_encoder.items())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer, not the file"),
        (b"<!DOCTYPE html>\n<html><title>Sign in</title></html>", "is a web page, not a checkpoint"),
        (b"\n  <HTML lang=en></HTML>", "is a web page, not a checkpoint"),
    ],
)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_says_what_a_download_left_in_a_files_place(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: {problem}"):
        load_checkpoint(tmp_path / name)
