"""Pipelines from the Hugging Face hub."""

import re
from pathlib import Path

from models.checkpoints.errors import CheckpointError
from models.checkpoints.pixart_pth import T5_FOLDERS, VAE_FOLDERS

PARTS = ("text_encoder", "vae", "tokenizer")
FILES = ("*.json", "*.safetensors", "*.model")
# PixArt's own repository keeps T5 and VAE under their own names, and T5 as pickles alone.
OWN_PARTS = tuple(sorted({*T5_FOLDERS, *VAE_FOLDERS} - set(PARTS)))
OWN_FILES = (*FILES, "*.bin")
IGNORED = ["*.fp16.*", "*.onnx*"]


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form `owner/name`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def wanted(transformer: bool) -> list[str]:
    """Patterns of the files to fetch; see `fetch_hub`."""
    parts = (*PARTS, "transformer", "scheduler") if transformer else PARTS
    patterns = ["model_index.json", *(f"{part}/{name}" for part in parts for name in FILES)]
    if not transformer:
        patterns += [f"{part}/{name}" for part in OWN_PARTS for name in OWN_FILES]
    return patterns


def fetch_hub(repo: str, *, transformer: bool = True) -> Path:
    """The local folder of `repo`, downloaded into the hub's own cache where it is not there already.

    Only the parts that are read are fetched; `transformer` says whether the whole pipeline is wanted, or what a
    PixArt file lacks.

    Raises:
        CheckpointError: the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=wanted(transformer), ignore_patterns=IGNORED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{repo}: cannot be fetched from the hub ({error})") from error
