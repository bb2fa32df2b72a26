"""A page of samples with their captions, for the model card."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from training.evaluation.draws import Draws
from training.evaluation.sampler import Pictures, Sampler, sample


def contact_sheet(pictures: Pictures, labels: Sequence[str], columns: int) -> Image.Image:
    """Pictures [B, H, W, 3] in rows of `columns`, each above its label."""
    _, height, width, _ = pictures.shape
    font = ImageFont.load_default(size=max(9, width // 12))
    strip = max(9, width // 12) * 3 // 2
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + strip)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = i % columns * width, i // columns * (height + strip)
        sheet.paste(Image.fromarray(picture), (x, y))
        while len(label) > 1 and pen.textlength(label, font=font) > width - 4:
            label = label[:-2].rstrip() + "…"
        pen.text((x + width // 2, y + height + strip // 2), label, fill="black", font=font, anchor="mm")
    return sheet


def write_grid(sampler: Sampler, draws: Draws, path: Path, *, steps: int, batch: int, side: int = 8) -> list[str]:
    """Write `side`² samples as one PNG and return their captions.

    Captions are drawn by rule: seen subjects in a seeded order, colours evenly.
    """
    pairs = draws.pairs(draws.seen, side * side, salt=6)
    captions = draws.captions(pairs)
    pictures = sample(sampler, captions, draws.seeds(6, len(pairs)), steps, batch=batch)
    labels = [f"{draws.data.subjects[i].label}, {color}" for i, color in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, labels, side).save(path, optimize=True)
    return captions
