"""T5's tokenizer as one `tokenizer.json` that does PixArt's whole treatment of a prompt."""

from pathlib import Path

from tokenizers import Tokenizer, normalizers

from models.checkpoints.errors import CheckpointError

JSON = "tokenizer.json"
SENTENCEPIECE = "spiece.model"


def write_tokenizer(source: Path, target: Path) -> None:
    """Write the tokenizer of `source` to `target`.

    A folder of transformers' (with `tokenizer.json`, or the `spiece.model` that PixArt is published with)
    gets what PixArt does to prompts before T5's own normalisation: lower case, no surrounding space. A file is a
    `tokenizer.json` that does so already, and is copied. The result adds `</s>`, and neither pads nor cuts.

    Raises:
        CheckpointError: there is no tokenizer, or it cannot be read.
    """
    if source.is_file():
        target.write_bytes(source.read_bytes())
        return
    tokenizer = _read(source)
    own = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Strip(), *([own] if own is not None else [])]
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(target))


def _read(folder: Path) -> Tokenizer:
    try:
        if (folder / JSON).is_file():
            return Tokenizer.from_file(str(folder / JSON))
        if (folder / SENTENCEPIECE).is_file():
            from transformers import T5Tokenizer

            return T5Tokenizer.from_pretrained(folder).backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{folder}: its tokenizer cannot be read ({error})") from error
    raise CheckpointError(f"{folder}: holds neither {JSON} nor {SENTENCEPIECE}")
