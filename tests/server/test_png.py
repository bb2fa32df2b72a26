"""The PNG writer against Pillow's reader, which is libpng's rules in C, on pictures of every kind."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server import png
from server.pictures import Pixels


def read(data: bytes) -> Pixels:
    """Checks every chunk's checksum, then reads."""
    Image.open(io.BytesIO(data)).verify()
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "PNG" and picture.mode == "RGB"
    return np.asarray(picture)


def smooth(height: int, width: int, seed: int) -> Pixels:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(rng.uniform(-0.3, 0.3) * y + rng.uniform(-0.3, 0.3) * x + rng.uniform(0, 6)) for _ in range(3)]
    return np.stack([127.5 + 127.5 * wave for wave in waves], axis=-1).astype(np.uint8)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from(["noise", "smooth", "one"]))
def test_a_reader_sees_the_same_pixels(height: int, width: int, seed: int, kind: str) -> None:
    if kind == "noise":
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    elif kind == "smooth":
        pixels = smooth(height, width, seed)
    else:
        pixels = np.full((height, width, 3), seed % 256, np.uint8)
    assert (read(png.write(pixels)) == pixels).all()


def test_a_view_with_steps_is_written_as_it_is_seen() -> None:
    pixels = smooth(64, 48, 1)[::-2, ::3]
    assert (read(png.write(pixels)) == pixels).all()


def test_text_is_kept() -> None:
    data = png.write(smooth(8, 8, 2), {"pixart": '{"seed": 7}', "Title": "é"})
    assert Image.open(io.BytesIO(data)).info == {"pixart": '{"seed": 7}', "Title": "é"}
    with pytest.raises(UnicodeEncodeError):
        png.write(smooth(8, 8, 2), {"Title": "字"})


def test_each_row_takes_the_filter_that_suits_it() -> None:
    """Columns repeat what is above, rows what is to the left: with the better filter either costs next to nothing."""
    noise = np.random.default_rng(3).integers(0, 256, (256, 1, 3), dtype=np.uint8)
    flat = np.broadcast_to(noise, (256, 256, 3))
    assert len(png.write(flat)) < 6_000 and len(png.write(flat.transpose(1, 0, 2))) < 6_000


def test_files_are_not_much_larger_than_libpngs() -> None:
    pixels = np.asarray(Image.open("docs/images/emoji.png").convert("RGB"))
    reference = io.BytesIO()
    Image.fromarray(pixels).save(reference, "PNG", compress_level=6)
    assert len(png.write(pixels)) < 1.25 * len(reference.getvalue())
