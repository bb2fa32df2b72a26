"""Pipelines from the Hugging Face hub."""

import re
from pathlib import Path

from models.checkpoints.errors import CheckpointError

PARTS = ("text_encoder", "vae", "tokenizer")
FILES = ("*.json", "*.safetensors", "*.model")


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form `owner/name`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def fetch_hub(repo: str, *, transformer: bool = True) -> Path:
    """The local folder of `repo`, downloaded into the hub's own cache where it is not there already.

    Only the parts that are read are fetched, and no pickles; `transformer` says whether its weights are wanted.

    Raises:
        CheckpointError: the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    parts = (*PARTS, "transformer", "scheduler") if transformer else PARTS
    patterns = ["model_index.json", *(f"{part}/{name}" for part in parts for name in FILES)]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=["*.fp16.*", "*.onnx*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{repo}: cannot be fetched from the hub ({error})") from error
