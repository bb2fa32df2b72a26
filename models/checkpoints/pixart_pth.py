"""PixArt's own files: the transformer alone (`PixArt-XL-2-1024-MS.pth`), or with its control branch.

T5, VAE and tokenizer come from folders, by default those that PixArt's hub repository keeps beside the file.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.components import read_t5, read_vae
from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import read_tensors
from models.checkpoints.keys import SHOWN, Sources, StateDict, assemble, identity, prefixed, select, with_parameters
from models.checkpoints.naming import PIXART, drop_variance, expected_transformer
from models.config import DiTConfig, PixArtConfig, SamplerConfig
from models.controlnet import ControlNetTransformer
from models.dit import DiT

BASE = "base_model."
BRANCH = "controlnet."
# The sine positions, which are computed, and the caption of an empty prompt, which only guidance needs.
POSITIONS = "pos_embed"
NULL_CAPTION = "y_embedder.y_embedding"
HEAD_SIZE = 72  # of every published PixArt model
SIZE_CONDITIONED_SAMPLE = 128

T5_FOLDERS = ("text_encoder", "t5-v1_1-xxl", "t5_ckpts/t5-v1_1-xxl")
VAE_FOLDERS = ("vae", "sd-vae-ft-ema")
TOKENIZER_FOLDERS = ("tokenizer", *T5_FOLDERS)


def read_pixart(path: Path, components: Path | None = None) -> Checkpoint:
    """The transformer of `path`, with its control branch if it has one; the other parts from `components`.

    `components` is a folder with text_encoder, vae and tokenizer (or t5-v1_1-xxl and sd-vae-ft-ema); without
    it, the folder of `path` itself.

    Raises:
        CheckpointError: a part is missing, or a tensor is not PixArt's.
    """
    tensors = read_tensors(path)
    branch = select(BRANCH, tensors)
    base = _base(path, tensors)
    dit_config = infer_config(base, str(path))
    base |= {
        name: drop_variance(base[name], dit_config)
        for name in ("final_layer.linear.weight", "final_layer.linear.bias")
        if name in base
    }
    plan, expected = PIXART.plan(dit_config), expected_transformer(dit_config)
    state = assemble(str(path), base, plan, expected, ignored=(POSITIONS, NULL_CAPTION))

    parts = components or path.parent
    text_config, t5 = read_t5(_find(parts, T5_FOLDERS))
    vae_config, latent, vae = read_vae(_find(parts, VAE_FOLDERS))
    config = PixArtConfig(dit=dit_config, sampler=SamplerConfig(), latent=latent, text=text_config, vae=vae_config)
    if NULL_CAPTION in base:
        config = replace(config, max_tokens=base[NULL_CAPTION].shape[0])
    text_encoder = prefixed("t5.", t5) | prefixed("projection.", select("projection.", state))
    checkpoint = Checkpoint(config, select("dit.", state), text_encoder, vae, _find(parts, TOKENIZER_FOLDERS))
    return _with_branch(checkpoint, path, branch) if branch else checkpoint


def attach_controlnet(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """`checkpoint` with the control branch of `path`: PixArt's `.pth`, or safetensors under our own names.

    Of a PixArt file only the branch is taken. The base that is stored beside it is the one that the branch
    was trained on; `checkpoint`'s may be another of the same shape, such as a distilled one.

    Raises:
        CheckpointError: `path` holds no control branch, or one that does not fit.
    """
    tensors = read_tensors(path)
    if "before_proj.weight" in tensors:
        depth = len({name.split(".")[1] for name in tensors if name.startswith("after_proj.")})
        expected = _expected_branch(checkpoint.config.dit, depth, path)
        state = assemble(str(path), tensors, identity(expected), expected)
        return replace(checkpoint, config=replace(checkpoint.config, controlnet_depth=depth), controlnet=state)
    branch = select(BRANCH, tensors)
    if not branch:
        raise CheckpointError(f"{path}: holds no {BRANCH}* tensors")
    known = {f"{BASE}{name}" for sources in PIXART.plan(checkpoint.config.dit).values() for name in sources}
    known |= {BASE + POSITIONS, BASE + NULL_CAPTION}
    strange = [name for name in tensors if not name.startswith(BRANCH) and name not in known]
    if strange:
        raise CheckpointError(f"{path}: surplus: {', '.join(sorted(strange)[:SHOWN])}")
    return _with_branch(checkpoint, path, branch)


def infer_config(tensors: Mapping[str, Tensor], origin: str) -> DiTConfig:
    """Sizes of the transformer, which a .pth file does not state, from the shapes of its tensors.

    The trained resolution is that of the stored positions; where they were left out it can be told for the
    1024-pixel models alone, since only those have size conditions. Positions are stretched by
    sample_size / 64 (at least 1), as in every published model.

    Raises:
        CheckpointError: a tensor that tells a size is missing, or has an impossible shape.
    """
    for name, rank in (("x_embedder.proj.weight", 4), ("y_embedder.y_proj.fc1.weight", 2)):
        if name not in tensors:
            raise CheckpointError(f"{origin}: missing: {name}")
        if tensors[name].ndim != rank:
            raise CheckpointError(f"{origin}: {name} is {tuple(tensors[name].shape)}, not of {rank} dimensions")
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    conditions = any(name.startswith("csize_embedder.") for name in tensors)
    if POSITIONS in tensors:
        size = isqrt(tensors[POSITIONS].shape[-2]) * patch
    elif conditions:
        size = SIZE_CONDITIONED_SAMPLE
    else:
        raise CheckpointError(f"{origin}: missing: {POSITIONS}, without which the trained resolution is unknown")
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    if width % HEAD_SIZE or not blocks:
        raise CheckpointError(f"{origin}: width {width} with {len(blocks)} blocks is no PixArt model")
    return DiTConfig(
        sample_size=size,
        depth=len(blocks),
        width=width,
        heads=width // HEAD_SIZE,
        patch_size=patch,
        in_channels=channels,
        caption_channels=tensors["y_embedder.y_proj.fc1.weight"].shape[1],
        interpolation_scale=float(max(size // 64, 1)),
        size_conditions=conditions,
    )


def _base(path: Path, tensors: StateDict) -> StateDict:
    """The transformer's own tensors, without prefix."""
    if not any(name.startswith(BASE) for name in tensors):
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(BRANCH)}
    strange = sorted(name for name in tensors if not name.startswith((BASE, BRANCH)))
    if strange:
        raise CheckpointError(f"{path}: surplus: {', '.join(strange[:SHOWN])}")
    return select(BASE, tensors)


def _with_branch(checkpoint: Checkpoint, path: Path, branch: StateDict) -> Checkpoint:
    depth = len({name.split(".")[0] for name in branch})
    plan: dict[str, Sources] = {}
    for index in range(depth):
        plan |= PIXART.block_plan(f"blocks.{index}.", f"{BRANCH}{index}.copied_block.")
        plan |= with_parameters({f"after_proj.{index}": (f"{BRANCH}{index}.after_proj",)})
    plan |= with_parameters({"before_proj": (f"{BRANCH}0.before_proj",)})
    expected = _expected_branch(checkpoint.config.dit, depth, path)
    state = assemble(str(path), prefixed(BRANCH, branch), plan, expected)
    return replace(checkpoint, config=replace(checkpoint.config, controlnet_depth=depth), controlnet=state)


def _expected_branch(config: DiTConfig, depth: int, path: Path) -> StateDict:
    if not 1 <= depth < config.depth:
        raise CheckpointError(f"{path}: a control branch of {depth} blocks does not fit a base of {config.depth}")
    with torch.device("meta"):
        return ControlNetTransformer(DiT(config), depth).state_dict()


def _find(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise CheckpointError(f"{folder}: has no folder {' or '.join(names)}; a .pth file holds the transformer alone")
