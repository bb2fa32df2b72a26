"""The written tokenizer against SentencePiece itself, on prompts treated as PixArt treats them."""

from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import T5Tokenizer

from models.checkpoints import CheckpointError, write_tokenizer
from tests.checkpoints.published import write_sentencepiece

PROMPTS = [
    "a red apple",
    "  The QUICK Brown fox,\n  photo of   an Astronaut ",
    "ÉÀ 4K ｆｕｌｌｗｉｄｔｈ ﬁsh",
    "",
    "   ",
    "a",
]


@pytest.mark.parametrize("form", ["spiece.model", "tokenizer.json"])
def test_equals_sentencepiece(tmp_path: Path, form: str) -> None:
    model = write_sentencepiece(tmp_path / "tokenizer")
    source = tmp_path / "tokenizer"
    if form == "tokenizer.json":
        T5Tokenizer.from_pretrained(source).save_pretrained(tmp_path / "saved")
        source = tmp_path / "saved"
        assert not (source / "spiece.model").exists()
    write_tokenizer(source, tmp_path / "tokenizer.json")
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    exact = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for prompt in PROMPTS:
        assert ours.encode(prompt).ids == [*exact.encode(prompt.lower().strip()), exact.eos_id()], prompt
    assert ours.padding is None
    assert ours.truncation is None

    write_tokenizer(tmp_path / "tokenizer.json", tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_names_what_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither tokenizer\.json nor spiece\.model"):
        write_tokenizer(tmp_path, tmp_path / "out.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its tokenizer cannot be read"):
        write_tokenizer(tmp_path, tmp_path / "out.json")
