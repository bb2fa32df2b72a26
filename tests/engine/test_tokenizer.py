from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Reference

from engine.bundle import BundleError
from engine.tokenizer import Tokenizer
from tests.export.tiny import write_tokenizer

END = 1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return path


@pytest.mark.parametrize("prompt", ["apple", "a red apple on a blue background", "🍎 تفاحة e\u0301", "\u202e<pad></s>"])
def test_ids_are_the_packages_own_padded_to_eights(path: Path, prompt: str) -> None:
    tokens = Tokenizer(path, 120)([prompt])
    ids = Reference.from_file(str(path)).encode(prompt).ids
    assert tokens.ids.dtype == np.int64 and tokens.ids.shape[1] % 8 == 0
    assert tokens.ids.shape[1] - len(ids) in range(8)
    assert tokens.ids[0, : len(ids)].tolist() == ids
    assert tokens.mask[0].tolist() == [i < len(ids) for i in range(tokens.ids.shape[1])]
    assert not tokens.ids[0, len(ids) :].any()
    assert tokens.truncated == (False,)


def test_a_batch_is_as_long_as_its_longest_prompt(path: Path) -> None:
    tokenizer = Tokenizer(path, 24)
    prompts = ["a red apple", "the quick brown fox " * 20]
    tokens = tokenizer(prompts)
    assert tokens.ids.shape == (2, 24)
    assert tokens.truncated == (False, True)
    assert tokens.ids[1, -1] == END, "the end-of-text token survives the cut"
    alone = tokenizer(prompts[:1])
    assert tokens.ids[0, : tokens.mask[0].sum()].tolist() == alone.ids[0, : alone.mask[0].sum()].tolist()


def test_case_and_outer_space_do_not_matter(path: Path) -> None:
    tokens = Tokenizer(path, 24)(["  A Red APPLE ", "a red apple"])
    assert (tokens.ids[0] == tokens.ids[1]).all()


def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"^tokenizer\.json: is not a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json", 24)
