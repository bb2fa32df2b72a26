"""Prompts to token ids. All text normalisation is part of the bundle's `tokenizer.json`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from engine.bundle import BundleError

PADDING_MULTIPLE = 8


@dataclass(frozen=True)
class Tokens:
    """Ids int64 [B, L], mask bool [B, L] (True: a real token), and for each prompt whether it was cut."""

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    truncated: tuple[bool, ...]


class Tokenizer:
    """Encodes batches of prompts, padded to a multiple of eight tokens.

    Padded positions are masked out of every attention, so padding only as far as the batch's longest prompt is exact.

    Raises:
        BundleError: the file is not a tokenizer.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise BundleError(path.name, f"is not a tokenizer ({error})") from error
        self.max_tokens = max_tokens
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._padding = self._tokenizer.token_to_id("<pad>") or 0

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Encode; a prompt of more than `max_tokens` tokens is cut (its end-of-text token stays) and flagged."""
        encodings = self._tokenizer.encode_batch(list(prompts))
        longest = max(len(encoding.ids) for encoding in encodings)
        length = max(PADDING_MULTIPLE, -(-longest // PADDING_MULTIPLE) * PADDING_MULTIPLE)
        ids = np.full((len(encodings), length), self._padding, dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=np.bool_)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = True
        return Tokens(ids, mask, tuple(bool(encoding.overflowing) for encoding in encodings))
