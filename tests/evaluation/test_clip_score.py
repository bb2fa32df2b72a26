import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from training.evaluation.clip_score import ClipModel, clip_scores
from training.evaluation.sampler import Pictures

TEXTS = ["a cat", "a red tomato on a table", "cab"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random weights, a small vocabulary and all the files that a downloaded one has."""
    root = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(97, 123)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (root / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(root / "vocab.json"), str(root / "merges.txt"), model_max_length=16)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {
        "vocab_size": len(tokens),
        "max_position_embeddings": 16,
        "bos_token_id": len(tokens) - 2,
        "eos_token_id": len(tokens) - 1,
    }
    vision = tower | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(root)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(processor, tokenizer).save_pretrained(root)
    return root


def test_equals_the_model_called_as_a_whole(folder: Path) -> None:
    """CLIPModel's own forward yields cosines times its temperature."""
    pictures = np.random.default_rng().integers(0, 256, (3, 40, 32, 3), np.uint8)
    model = ClipModel(folder)
    inputs = model.processor(text=TEXTS, images=list(pictures), return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        cosines = (model.model(**inputs).logits_per_image / model.model.logit_scale.exp()).diagonal().numpy()
    np.testing.assert_allclose(clip_scores(model, pictures, TEXTS), np.maximum(100 * cosines, 0), atol=1e-3)


def test_batches_do_not_matter(folder: Path) -> None:
    pictures = np.random.default_rng().integers(0, 256, (3, 32, 32, 3), np.uint8)
    model = ClipModel(folder)
    whole = clip_scores(model, pictures, TEXTS)
    np.testing.assert_allclose(clip_scores(model, pictures, TEXTS, batch=1), whole, atol=1e-3)


class Towers:
    """Features given by hand."""

    def __init__(self, pictures: ArrayLike, texts: ArrayLike) -> None:
        self._pictures, self._texts = np.array(pictures, float), np.array(texts, float)

    def pictures(self, pictures: Pictures) -> NDArray[np.float64]:
        return self._pictures

    def texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return self._texts


def test_formula_on_known_angles() -> None:
    towers = Towers([[2, 0], [0, 3], [1, 1], [1, 0]], [[5, 0], [7, 0], [1, 0], [-1, 0]])
    scores = clip_scores(towers, np.zeros((4, 8, 8, 3), np.uint8), ["x"] * 4)
    np.testing.assert_allclose(scores, [100, 0, 100 / np.sqrt(2), 0], atol=1e-12)


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="2 pictures but 1 texts"):
        clip_scores(Towers([[1]], [[1]]), np.zeros((2, 8, 8, 3), np.uint8), ["x"])
