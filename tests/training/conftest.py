"""A recipe so small that every stage runs in seconds, on pictures drawn here."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

RECIPE = """
name = "tiny"
[data]
size = 32
[vae]
channels = [8, 8, 8, 8]
norm_groups = 4
loop = {{ steps = {steps}, batch = 4, lr = 2e-3, warmup = 2, save_every = 5, sample_every = {steps} }}
[model]
width = 32
depth = 3
heads = 2
controlnet_depth = 2
max_tokens = 24
text = {{ width = 32, heads = 2, layers = 1, mlp = 32, vocabulary = 300 }}
[base]
groups = ["animals"]
loop = {{ steps = {steps}, batch = 4, lr = 1e-3, warmup = 2, save_every = 5, sample_every = {steps} }}
[distill]
loop = {{ steps = {steps}, batch = 4, lr = 1e-3, warmup = 2, save_every = 5, sample_every = {steps} }}
[controlnet]
views = 2
loop = {{ steps = {steps}, batch = 4, lr = 1e-3, warmup = 2, save_every = 5, sample_every = {steps} }}
"""


def write_recipe(path: Path, steps: int) -> Path:
    path.write_text(RECIPE.format(steps=steps))
    return path


def draw_pictures(cache: Path, count: int = 320, size: int = 32) -> None:
    """Coloured ellipses and boxes in the format that `training.data.emoji` keeps its pictures in."""
    random = np.random.default_rng(0)
    rows, pictures = [], []
    for index in range(count):
        image = Image.new("RGBA", (size, size))
        corners = [*random.integers(2, 12, 2), *random.integers(18, 30, 2)]
        shape = ImageDraw.Draw(image).ellipse if index % 2 else ImageDraw.Draw(image).rectangle
        shape([int(corner) for corner in corners], fill=(*(int(v) for v in random.integers(0, 255, 3)), 255))
        pictures.append(np.asarray(image.convert("RGBa")).transpose(2, 0, 1))
        group = "animals" if index < count // 2 else "food"
        rows.append({"label": f"thing {index}", "tags": ["round"], "group": group, "hexcode": f"{index:04X}"})
    cache.mkdir(parents=True)
    np.savez(cache / f"pictures-{size}.npz", subjects=json.dumps(rows), pictures=np.stack(pictures))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs that holds drawn pictures."""
    draw_pictures(tmp_path / "runs" / "data")
    return tmp_path / "runs"
