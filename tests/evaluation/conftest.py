import colorsys
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.data import emoji

SIZE = 64


def draw_subjects(count: int = 48, size: int = SIZE) -> tuple[list[dict[str, object]], np.ndarray]:
    """Shapes that differ in form, colour and place, in the layout that `training.data.emoji` stores."""
    rows: list[dict[str, object]] = []
    pictures = []
    for index in range(count):
        image = Image.new("RGBA", (size, size))
        pen = ImageDraw.Draw(image)
        color = (*(round(255 * v) for v in colorsys.hsv_to_rgb(index * 0.37 % 1, 0.8, 0.85)), 255)
        left, top = 8 + index % 4 * 4, 8 + index // 4 % 4 * 4
        box = [left, top, left + 28, top + 20 + index % 3 * 5]
        (pen.ellipse if index % 2 else pen.rectangle)(box, fill=color)
        pen.line([left, top, left + 26, top + 18], fill=(40, 40, 60, 255), width=2 + index % 3)
        pictures.append(np.asarray(image.convert("RGBa")).transpose(2, 0, 1))
        group = ("animals", "food", "objects")[index * 3 // count]
        rows.append({"label": f"thing {index}", "tags": [], "group": group, "hexcode": f"{index:04X}"})
    return rows, np.stack(pictures)


@pytest.fixture(scope="session")
def data() -> emoji.EmojiSet:
    rows, pictures = draw_subjects()
    subjects = [emoji.Subject(str(r["label"]), (), str(r["group"]), str(r["hexcode"])) for r in rows]
    return emoji.EmojiSet(tuple(subjects), pictures)


def store_subjects(cache: Path) -> None:
    """What `training.data.emoji.load` finds when the pictures have been prepared before."""
    rows, pictures = draw_subjects()
    cache.mkdir(parents=True)
    np.savez(cache / f"pictures-{SIZE}.npz", subjects=json.dumps(rows), pictures=pictures)
