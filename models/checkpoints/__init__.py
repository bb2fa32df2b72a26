"""Checkpoints of every published format, read into the state dicts of our own modules.

`load_checkpoint` is the entry; `build` makes modules of what it returns, `save_native` writes our own format.
Every tensor of a file is accounted for: one that is missing, surplus or misshaped is an error that names it.
"""

from pathlib import Path

from models.checkpoints.build import Modules, build
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.diffusers import read_diffusers
from models.checkpoints.errors import CheckpointError
from models.checkpoints.hub import fetch_hub, is_hub_id
from models.checkpoints.lora import merge_lora
from models.checkpoints.native import is_native, load_native, save_native
from models.checkpoints.pixart_pth import attach_controlnet, read_pixart
from models.checkpoints.tokenizer import write_tokenizer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Modules",
    "build",
    "load_checkpoint",
    "load_native",
    "save_native",
    "write_tokenizer",
]


def load_checkpoint(
    source: str | Path,
    *,
    controlnet: Path | None = None,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    components: str | Path | None = None,
) -> Checkpoint:
    """Read a model.

    Args:
        source: a folder in diffusers' or our own layout, a hub id such as
            `PixArt-alpha/PixArt-LCM-XL-2-1024-MS`, or one of PixArt's own .pth files.
        controlnet: a control branch to attach, replacing one that `source` has.
        lora: an adapter to merge at strength `lora_scale`.
        components: for a .pth file, the folder or hub id with T5, VAE and tokenizer; else the file's own folder.

    Raises:
        CheckpointError: something is missing, unreadable or not PixArt's; the message names file and key.
    """
    checkpoint = _read(source, components)
    if controlnet is not None:
        checkpoint = attach_controlnet(checkpoint, Path(controlnet))
    if lora is not None:
        checkpoint = merge_lora(checkpoint, Path(lora), lora_scale)
    return checkpoint


def _read(source: str | Path, components: str | Path | None) -> Checkpoint:
    path = Path(source)
    if path.is_file():
        return read_pixart(path, None if components is None else _folder(components, transformer=False))
    if components is not None:
        raise CheckpointError(f"{source}: brings its own text encoder and VAE; components are for a .pth file")
    folder = _folder(source, transformer=True)
    return load_native(folder) if is_native(folder) else read_diffusers(folder)


def _folder(source: str | Path, *, transformer: bool) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if is_hub_id(str(source)):
        return fetch_hub(str(source), transformer=transformer)
    raise CheckpointError(f"{source}: is no file, no folder and no hub id")
