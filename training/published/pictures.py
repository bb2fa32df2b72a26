"""A folder of pictures with captions, in the layout of Hugging Face's "imagefolder": `metadata.jsonl` beside them."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from numpy.typing import NDArray
from PIL import Image, ImageOps

BINS = {256: ASPECT_RATIO_256_BIN, 512: ASPECT_RATIO_512_BIN, 1024: ASPECT_RATIO_1024_BIN}

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Captioned:
    """A picture's file and what it shows."""

    path: Path
    text: str


def read_captions(folder: Path) -> list[Captioned]:
    """Every line of `metadata.jsonl`: {"file_name": …, "text": …}.

    Raises:
        ValueError: there is no such file, a line is not of this form, or a picture is missing; the message names it.
    """
    listing = folder / "metadata.jsonl"
    if not listing.is_file():
        raise ValueError(f'{listing}: is missing; each of its lines is {{"file_name": …, "text": …}}')
    found = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            name, text = str(row["file_name"]), str(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{listing}:{number}: is not {{"file_name": …, "text": …}} ({error})') from error
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise ValueError(f"{listing}:{number}: there is no picture {name!r} in {folder}")
        found.append(Captioned(path, text))
    if not found:
        raise ValueError(f"{listing}: names no picture")
    return found


def upright(path: Path) -> Image.Image:
    """The picture as it is meant to be seen: turned by its EXIF note, on white where it is transparent.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture).convert("RGB")


def size_for(height: int, width: int, side: int, any_shape: bool) -> Size:
    """What a model trained at `side` makes of a picture of this shape: PixArt's nearest bin, or a square."""
    if not any_shape or side not in BINS:
        return side, side
    fitted: Size = PixArtImageProcessor.classify_height_width_bin(height, width, BINS[side])
    return fitted


def by_size(pictures: Sequence[Captioned], side: int, any_shape: bool) -> dict[Size, list[Captioned]]:
    """Pictures that are brought to the same size together, in the order of the folder."""
    groups: dict[Size, list[Captioned]] = defaultdict(list)
    for picture in pictures:
        width, height = upright(picture.path).size
        groups[size_for(height, width, side, any_shape)].append(picture)
    return dict(sorted(groups.items()))


def fitted(path: Path, size: Size) -> NDArray[np.uint8]:
    """The picture scaled and cropped around its centre to `size`, uint8 [height, width, 3]."""
    height, width = size
    return np.asarray(ImageOps.fit(upright(path), (width, height), Image.Resampling.LANCZOS))
