"""CLIP score: how well pictures and captions agree in the eyes of a two-tower model (Hessel et al., 2021)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from training.evaluation.sampler import Pictures, runs


class TwoTower(Protocol):
    """A model that maps pictures and texts into one space."""

    def pictures(self, pictures: Pictures) -> NDArray[np.floating]:
        """[B, H, W, 3] → [B, D]."""

    def texts(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """B texts → [B, D]."""


class ClipModel:
    """A CLIP model in transformers' layout: a folder, or a hub id for those who have the hub."""

    def __init__(self, source: Path | str) -> None:
        from transformers import AutoProcessor, CLIPModel

        self.model = CLIPModel.from_pretrained(source).eval()
        self.processor = AutoProcessor.from_pretrained(source)

    @torch.no_grad()
    def pictures(self, pictures: Pictures) -> NDArray[np.floating]:
        """Projected picture features."""
        inputs = self.processor(images=[Image.fromarray(picture) for picture in pictures], return_tensors="pt")
        pooled = self.model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
        return self.model.visual_projection(pooled).numpy()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """Projected text features; texts past the model's length are cut."""
        inputs = self.processor(text=list(texts), return_tensors="pt", padding=True, truncation=True)
        pooled = self.model.text_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        return self.model.text_projection(pooled).numpy()


def clip_scores(model: TwoTower, pictures: Pictures, texts: Sequence[str], batch: int = 32) -> NDArray[np.float64]:
    """max(100·cos, 0) of each picture with its own text, [B].

    Raises:
        ValueError: there are not as many texts as pictures.
    """
    if len(pictures) != len(texts):
        raise ValueError(f"{len(pictures)} pictures but {len(texts)} texts")
    scores = []
    for run in runs(len(texts), batch):
        a = np.asarray(model.pictures(pictures[run]), np.float64)
        b = np.asarray(model.texts(texts[run]), np.float64)
        cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        scores.append(np.maximum(100 * cosine, 0))
    return np.concatenate(scores)
