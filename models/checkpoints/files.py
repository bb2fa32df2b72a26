"""Tensors and JSON from disk. Safetensors files are mapped, not read: a tensor costs memory when it is used."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.keys import StateDict

LFS_POINTER = b"version https://git-lfs.github.com/"
HTML = (b"<!doctype html", b"<html")
# Under which a training script may have put the weights, beside its optimizer and counters.
NESTED = ("state_dict", "model")


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`.

    Raises:
        CheckpointError: the file is missing, or holds no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, not an object")
    return data


def read_tensors(path: Path) -> StateDict:
    """All tensors of one file: safetensors, or a pickle that holds nothing but tensors and plain containers.

    Raises:
        CheckpointError: the file is missing, damaged, or a pickle of anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    _refuse_stand_in(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: is not a safetensors file ({error})") from error
    return _unpickle(path)


def read_folder(folder: Path, stems: tuple[str, ...]) -> StateDict:
    """The tensors of a model folder as diffusers and transformers save it, in one file or in shards.

    The first that exists wins: for each of `stems`, `<stem>.safetensors` or its index, then `<stem>.fp16.safetensors`
    or its index, then `<stem>.bin` or its index.

    Raises:
        CheckpointError: there is no such file, or a file or shard is missing or unreadable.
    """
    names = [f"{stem}{suffix}" for suffix in (".safetensors", ".fp16.safetensors", ".bin") for stem in stems]
    for name in names:
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (folder / _index(name)).is_file():
            return _read_shards(folder, folder / _index(name))
    raise CheckpointError(f"{folder}: holds none of {', '.join(names)}")


def _index(name: str) -> str:
    """The list of a file's shards. The libraries put a variant before the last ending, here too."""
    stem, variant, suffix = name.partition(".fp16")
    return f"{stem}{suffix}.index{variant}.json"


def _refuse_stand_in(path: Path) -> None:
    """What downloads leave in a file's place, and no reader of tensors would call by its name."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(LFS_POINTER):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the file itself; fetch it with: git lfs pull")
    if start.lstrip().lower().startswith(HTML):
        raise CheckpointError(f"{path}: is a web page, not a checkpoint; download the file itself")


def _read_shards(folder: Path, index: Path) -> StateDict:
    shards: Mapping[str, str] = read_json(index).get("weight_map", {})
    tensors: StateDict = {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index}: shard {shard!r} is not a file name")
        tensors.update(read_tensors(folder / shard))
    return tensors


def _unpickle(path: Path) -> StateDict:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is pickled with more than plain tensors, and unpickling it could run any code; "
            f"save its tensors as safetensors instead ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: is not a PyTorch file ({error})") from error
    for name in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
    return {name: value.detach() for name, value in content.items()}
