import base64
import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

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
        (Image.new("1", (20000, 20000)), "20000x20000 pixels; at most 65536"),
        (Image.new("L", (7, 64)), "7x64 pixels; at least 8x8"),
    ],
)
def test_size_limits_are_named(picture: Image.Image, message: str) -> None:
    with pytest.raises(pictures.PictureError, match=message):
        pictures.decode(encode(picture), LIMIT, 64, 32)


def test_the_limit_that_is_set_is_the_one_that_holds() -> None:
    data = handmade(13500, 13500, chunk(b"IDAT", zlib.compress(b"")))  # more than Pillow's own limit
    assert pictures.dimensions(data, 1 << 28) == (13500, 13500)
    with pytest.raises(pictures.PictureError, match="13500x13500 pixels; at most 182249999"):
        pictures.dimensions(data, 13500 * 13500 - 1)


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


@given(st.integers(32, 900), st.integers(32, 900), st.integers(8, 128), st.integers(8, 128), st.integers(0, 2**32))
def test_scaling_is_that_of_the_whole_filter(width: int, height: int, to_width: int, to_height: int, seed: int) -> None:
    """Pillow's own fit, which filters all pixels, is the reference; the worst is at a hard edge."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height), tuple(int(level) for level in rng.integers(0, 256, 3)))
    for _ in range(3):
        left, top, *colour = (int(number) for number in rng.integers(0, (width, height, 256, 256, 256)))
        ImageDraw.Draw(picture).ellipse((left, top, left + width // 3, top + height // 3), tuple(colour))
    pixels = pictures.decode(encode(picture), 900 * 900, to_width, to_height).astype(int)
    expected = np.asarray(ImageOps.fit(picture, (to_width, to_height), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(pixels - expected).max() <= 32 and np.abs(pixels - expected).mean() < 1


def test_grey_of_16_bits_keeps_its_shades() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    pixels = pictures.decode(encode(Image.fromarray(np.tile(ramp, (32, 1)))), LIMIT, 64, 32)
    assert np.abs(pixels[16, :, 0].astype(int) - ramp // 256).max() <= 1


def test_cmyk() -> None:
    pixels = pictures.decode(encode(Image.new("CMYK", (64, 32), (0, 255, 255, 0)), "JPEG"), LIMIT, 64, 32)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    first, *rest = (Image.new("RGB", (64, 32), colour) for colour in ("red", "lime", "blue"))
    data = encode(first, kind, save_all=True, append_images=rest, duration=100, lossless=True)
    assert (pictures.decode(data, LIMIT, 64, 32) == (255, 0, 0)).all()


def test_a_palette_with_a_transparent_colour() -> None:
    picture = Image.new("P", (64, 32), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.paste(1, (0, 0, 32, 32))
    pixels = pictures.decode(encode(picture, transparency=0), LIMIT, 64, 32)
    assert (pixels[:, :31] == (255, 0, 0)).all() and (pixels[:, 33:] == 255).all()


def test_what_follows_a_picture_is_not_looked_at() -> None:
    """Polyglots: a picture that is a web page or an archive to somebody else. Only pixels go further."""
    plain = pictures.decode(PNG, LIMIT, 64, 32)
    for tail in (b"<script>alert(1)</script>", b"PK\x03\x04" + b"\0" * 30, b"%PDF-1.7", PNG):
        assert (pictures.decode(PNG + tail, LIMIT, 64, 32) == plain).all()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def handmade(width: int, height: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(50_000_000), 9)  # 50 kB


@pytest.mark.parametrize(
    "data",
    [
        handmade(50_000, 50_000, chunk(b"IDAT", BOMB)),
        handmade(2**31 - 1, 2**31 - 1, chunk(b"IDAT", BOMB)),
        handmade(64, 64, chunk(b"zTXt", b"a\0\0" + BOMB), chunk(b"IDAT", BOMB)),
        handmade(64, 64, chunk(b"iCCP", b"a\0\0" + BOMB), chunk(b"IDAT", BOMB)),
        handmade(64, 64, chunk(b"IDAT", BOMB)),
        handmade(64, 64, *[chunk(b"tEXt", b"a\0" + bytes(1000))] * 1000),
    ],
    ids=["wide", "widest", "text", "profile", "pixels", "many texts"],
)
def test_a_bomb_takes_no_memory(data: bytes) -> None:
    """Small files that would be large in memory."""
    tracemalloc.start()
    try:
        with contextlib.suppress(pictures.PictureError):
            assert pictures.decode(data, LIMIT, 64, 32).shape == (32, 64, 3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encode(Image.effect_noise((64, 64), 80.0), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    assert pictures.decode(data, LIMIT, 64, 32).shape == (32, 64, 3)
    with pytest.raises(pictures.PictureError, match="more than 64 scans"):
        pictures.decode(data[:start] + scan * 100 + data[-2:], LIMIT, 64, 32)


@pytest.mark.parametrize(("orientation", "expected"), [(1, (40, 30)), (3, (40, 30)), (6, (30, 40)), (8, (30, 40))])
def test_dimensions_are_those_that_are_seen(orientation: int, expected: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pictures.dimensions(encode(Image.new("RGB", (40, 30)), "JPEG", exif=exif.tobytes()), LIMIT) == expected


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_encodes_each_format(kind: pictures.Format) -> None:
    pixels = np.asarray(Image.radial_gradient("L").convert("RGB"))
    picture = Image.open(io.BytesIO(pictures.encode(pixels, kind)))
    assert picture.format == kind.upper()
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - pixels).mean() < 2
    if kind != "png":
        assert len(pictures.encode(pixels, kind, 10)) < len(pictures.encode(pixels, kind, 100))


def test_png_is_lossless() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(pictures.to_png(pixels)))) == pixels).all()
