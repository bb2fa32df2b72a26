"""Tiny models in the published formats, saved by the libraries that define those formats."""

import json
from pathlib import Path
from typing import Any, TypeVar

import sentencepiece
import torch
from diffusers import AutoencoderKL, LCMScheduler, PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

WIDTH, HEADS, DEPTH, CAPTION = 144, 2, 3, 16  # heads of 72, as in every PixArt model
CORPUS = "a red apple on a blue table\nthe quick brown fox\nphoto of an astronaut riding a horse, 4k\n" * 8


Model = TypeVar("Model", bound=nn.Module)


def randomise(module: Model) -> Model:
    """Draw every parameter anew, so that nothing stays at zero or one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    module.requires_grad_(False).eval()
    return module


def transformer(**changes: Any) -> PixArtTransformer2DModel:
    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": 72,
        "num_layers": DEPTH,
        "cross_attention_dim": WIDTH,
        "sample_size": 8,
        "caption_channels": CAPTION,
    }
    return randomise(PixArtTransformer2DModel(**{**config, **changes}))


def save_pipeline(folder: Path, **changes: Any) -> tuple[PixArtTransformer2DModel, T5EncoderModel, AutoencoderKL]:
    """A pipeline folder and the models in it; `changes` go into the transformer's configuration."""
    dit = transformer(**changes)
    # Published files hold one tensor more than diffusers' module.
    dit.caption_projection.register_buffer("y_embedding", torch.randn(120, CAPTION))
    dit.save_pretrained(folder / "transformer")
    del dit.caption_projection.y_embedding
    t5, vae = save_components(folder, "text_encoder", "vae", "tokenizer")
    scheduler = LCMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    return dit, t5, vae


def save_components(folder: Path, text: str, vae: str, tokenizer: str) -> tuple[T5EncoderModel, AutoencoderKL]:
    """T5 (in several shards), VAE and SentencePiece model in folders of these names."""
    config = T5Config(
        vocab_size=64, d_model=CAPTION, d_kv=8, d_ff=24, num_heads=2, num_layers=2, feed_forward_proj="gated-gelu"
    )
    t5 = randomise(T5EncoderModel(config))
    t5.save_pretrained(folder / text, max_shard_size="4KB")
    kl = randomise(
        AutoencoderKL(
            block_out_channels=(4, 4, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            scaling_factor=0.25,
        )
    )
    kl.save_pretrained(folder / vae)
    write_sentencepiece(folder / tokenizer)
    return t5, kl


def write_sentencepiece(folder: Path) -> Path:
    """A unigram model with T5's special tokens, as `spiece.model` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder.parent / "corpus.txt"
    text.write_text(CORPUS)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    text.unlink()
    return folder / "spiece.model"


def original_names(module: PixArtTransformer2DModel) -> dict[str, Tensor]:
    """The state of diffusers' transformer under the names of PixArt's own code, written out here independently."""
    state = module.state_dict()
    renamed: dict[str, Tensor] = {}

    def put(ours: str, *theirs: str) -> None:
        for parameter in ("weight", "bias"):
            renamed[f"{ours}.{parameter}"] = torch.cat([state.pop(f"{name}.{parameter}") for name in theirs])

    put("x_embedder.proj", "pos_embed.proj")
    put("t_embedder.mlp.0", "adaln_single.emb.timestep_embedder.linear_1")
    put("t_embedder.mlp.2", "adaln_single.emb.timestep_embedder.linear_2")
    put("t_block.1", "adaln_single.linear")
    put("y_embedder.y_proj.fc1", "caption_projection.linear_1")
    put("y_embedder.y_proj.fc2", "caption_projection.linear_2")
    if "adaln_single.emb.resolution_embedder.linear_1.weight" in state:
        for ours, theirs in (("csize_embedder", "resolution_embedder"), ("ar_embedder", "aspect_ratio_embedder")):
            put(f"{ours}.mlp.0", f"adaln_single.emb.{theirs}.linear_1")
            put(f"{ours}.mlp.2", f"adaln_single.emb.{theirs}.linear_2")
    for index in range(module.config.num_layers):
        ours, theirs = f"blocks.{index}", f"transformer_blocks.{index}"
        put(f"{ours}.attn.qkv", *(f"{theirs}.attn1.to_{letter}" for letter in "qkv"))
        put(f"{ours}.attn.proj", f"{theirs}.attn1.to_out.0")
        put(f"{ours}.cross_attn.q_linear", f"{theirs}.attn2.to_q")
        put(f"{ours}.cross_attn.kv_linear", f"{theirs}.attn2.to_k", f"{theirs}.attn2.to_v")
        put(f"{ours}.cross_attn.proj", f"{theirs}.attn2.to_out.0")
        put(f"{ours}.mlp.fc1", f"{theirs}.ff.net.0.proj")
        put(f"{ours}.mlp.fc2", f"{theirs}.ff.net.2")
        renamed[f"{ours}.scale_shift_table"] = state.pop(f"{theirs}.scale_shift_table")
    put("final_layer.linear", "proj_out")
    renamed["final_layer.scale_shift_table"] = state.pop("scale_shift_table")
    assert not state
    tokens = (module.config.sample_size // module.config.patch_size) ** 2
    renamed["pos_embed"] = torch.zeros(1, tokens, WIDTH)
    renamed["y_embedder.y_embedding"] = torch.randn(120, CAPTION)
    return renamed


def original_branch(base: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """A random control branch of `depth` blocks under the names of PixArt's ControlNet, beside its base."""
    state = {f"base_model.{name}": tensor for name, tensor in base.items()}
    for index in range(depth):
        for name, tensor in base.items():
            if name.startswith(f"blocks.{index}."):
                inner = name.removeprefix(f"blocks.{index}.")
                state[f"controlnet.{index}.copied_block.{inner}"] = tensor + 0.1 * torch.randn_like(tensor)
        for layer in ("before_proj", "after_proj") if index == 0 else ("after_proj",):
            state[f"controlnet.{index}.{layer}.weight"] = torch.randn(WIDTH, WIDTH)
            state[f"controlnet.{index}.{layer}.bias"] = torch.randn(WIDTH)
    return state
