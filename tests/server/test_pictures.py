import base64
import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from engine.manifest import Size
from server import pictures

SIZE = Size(width=64, height=32)
LIMIT = 256 * 256


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_decodes_each_format_to_the_asked_size(kind: str) -> None:
    pixels = pictures.decode(encode(Image.new("RGB", (100, 90), (200, 40, 40)), kind), LIMIT, 64, 32)
    assert pixels.shape == (32, 64, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (200, 40, 40)).max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_pixel_format_becomes_rgb(mode: str) -> None:
    assert pictures.decode(encode(Image.new(mode, (64, 32))), LIMIT, 64, 32).shape == (32, 64, 3)


def test_transparent_parts_are_white() -> None:
    picture = Image.new("RGBA", (64, 32), (255, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 32, 32))
    pixels = pictures.decode(encode(picture), LIMIT, 64, 32)
    assert (pixels[:, :32] == 0).all() and (pixels[:, 32:] == 255).all()


def test_a_camera_rotation_is_applied() -> None:
    picture = Image.new("RGB", (32, 64), "white")
    picture.paste((0, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise to view
    pixels = pictures.decode(encode(picture, exif=exif.tobytes()), LIMIT, 64, 32)
    assert (pixels[:, 32:] == 0).all() and (pixels[:, :32] == 255).all()


def test_scales_to_cover_and_crops_about_the_centre() -> None:
    picture = Image.new("RGB", (128, 192), "white")
    picture.paste((0, 0, 0), (0, 64, 128, 128))  # the middle third, which is what a 2:1 picture keeps
    pixels = pictures.decode(encode(picture), LIMIT, 64, 32)
    assert (pixels[2:-2] <= 2).all()  # the filter's ringing


def test_edges_are_light_on_dark_whichever_way_they_were_drawn() -> None:
    lines = np.zeros((32, 64, 3), np.uint8)
    lines[10] = 255
    for drawn in (lines, 255 - lines):
        data = encode(Image.fromarray(drawn))
        assert (pictures.read_control(data, "edges", LIMIT, SIZE) == lines).all()
        assert (pictures.read_control(data, "picture", LIMIT, SIZE) == drawn).all()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("L", (257, 256)), "257x256 pixels; at most 65536"),
        (Image.new("1", (20000, 20000)), "too many pixels; at most 65536"),
        (Image.new("L", (7, 64)), "7x64 pixels; at least 8x8"),
    ],
)
def test_size_limits_are_named(picture: Image.Image, message: str) -> None:
    with pytest.raises(pictures.PictureError, match=message):
        pictures.decode(encode(picture), LIMIT, 64, 32)


def test_other_formats_are_refused() -> None:
    for kind in ("GIF", "BMP", "TIFF"):
        with pytest.raises(pictures.PictureError, match="not a PNG, JPEG or WebP"):
            pictures.decode(encode(Image.new("RGB", (64, 64)), kind), LIMIT, 64, 32)


PNG = encode(Image.effect_noise((48, 48), 80.0))


@given(st.binary(max_size=200), st.integers(0, len(PNG)))
@example(b"", 0)
@example(b"", len(PNG) // 2)
def test_damaged_files_give_a_picture_error_or_a_picture(junk: bytes, cut: int) -> None:
    try:
        pixels = pictures.decode(PNG[:cut] + junk, LIMIT, 64, 32)
    except pictures.PictureError as error:
        assert str(error)
    else:
        assert pixels.shape == (32, 64, 3)


@given(st.binary(max_size=50))
def test_base64_is_read_with_and_without_a_data_url(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert pictures.from_base64(text) == data
    assert pictures.from_base64("data:image/png;base64," + text) == data


@pytest.mark.parametrize("text", ["QUJ", "Q!==", "data:image/png;base64,💥", "QUJD\n", "\ud800"])
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(pictures.PictureError, match="not base64"):
        pictures.from_base64(text)


def test_png_is_lossless() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(pictures.to_png(pixels)))) == pixels).all()
