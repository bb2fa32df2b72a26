"""Pictures on the wire: control images in; PNG, JPEG or WebP out. Callers do it in threads, but for what is `quick`."""

import io
import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pybase64
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.manifest import Size
from engine.request import ControlKind
from server import png

Pixels = NDArray[np.uint8]
Format = Literal["png", "jpeg", "webp"]

FORMATS = ("PNG", "JPEG", "WEBP")
MIN_SIDE = 8  # pixels
DEFAULT_QUALITY = 90  # of JPEG and WebP
# Pillow's own limit would strike before the operator's, which is judged right after the header.
Image.MAX_IMAGE_PIXELS = None
# Each scan of a progressive JPEG passes over all pixels, and takes a few bytes; ten are usual.
MAX_SCANS = 64
# Encoding less takes a millisecond or two, of which waking a thread for it would be a good part.
_QUICK = 1 << 16  # bytes of pixels


class PictureError(ValueError):
    """A client's picture is refused; the message says why, and names the limit if it is one."""


def from_base64(text: str) -> bytes:
    """The bytes behind base64 text, with or without a `data:` prefix.

    Raises:
        PictureError: the text is not base64.
    """
    start = text.find(",", 0, 200) + 1 if text.startswith("data:") else 0
    try:
        return pybase64.b64decode(text[start:], validate=True)
    except ValueError as error:
        raise PictureError("is not base64") from error


def dimensions(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height of a PNG, JPEG or WebP picture as it is to be seen. Its pixels are not decoded.

    Raises:
        PictureError: not such a picture, too large or too small.
    """
    with _open(data, max_pixels) as file:
        width, height = file.size
        try:
            turned = file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception:  # a damaged note of a rotation is no rotation
            turned = False
    return (height, width) if turned else (width, height)


def decode(data: bytes, max_pixels: int, width: int, height: int) -> Pixels:
    """Read a PNG, JPEG or WebP picture to uint8 [height, width, 3]: scaled to cover, then cropped about the centre.

    The header is read first, and a picture of more than `max_pixels` is refused before any of its pixels is decoded.
    Transparent parts come out white, like paper. A rotation noted by a camera is applied. Of an animation the first
    frame counts. Whatever follows the picture in the file is not looked at.

    Raises:
        PictureError: not such a picture, damaged, too large or too small.
    """
    with _open(data, max_pixels) as file:
        try:
            file.draft(None, (2 * max(width, height),) * 2)  # lets a large JPEG be decoded at a fraction of its size
            upright = _eight_bits(ImageOps.exif_transpose(file))
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
        except Exception as error:  # damaged files make the decoders raise nearly anything
            raise PictureError("is damaged and cannot be decoded") from error
    picture = _fit(upright, width, height)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return np.array(picture)


def _fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scaled to cover, then cropped about the centre: `ImageOps.fit`, in a quarter of its time for large pictures."""
    scale = max(width / picture.width, height / picture.height)
    kept_width, kept_height = min(width / scale, picture.width), min(height / scale, picture.height)
    left, top = (picture.width - kept_width) / 2, (picture.height - kept_height) / 2
    box = (left, top, min(left + kept_width, picture.width), min(top + kept_height, picture.height))
    # A gap: averages over whole pixels come first, so far that the filter still sees three pixels for each of its own.
    return picture.resize((width, height), Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The picture behind its header, its size being allowed; no pixel is decoded yet."""
    try:
        file = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise PictureError("is not a PNG, JPEG or WebP picture") from error
    except Exception as error:
        raise PictureError("is damaged and cannot be decoded") from error
    size = f"{file.width}x{file.height} pixels"
    if file.width * file.height > max_pixels:
        raise PictureError(f"has {size}; at most {max_pixels} in all are allowed")
    if min(file.size) < MIN_SIDE:
        raise PictureError(f"has {size}; at least {MIN_SIDE}x{MIN_SIDE} are needed")
    if file.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise PictureError(f"has more than {MAX_SCANS} scans")
    return file


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey levels of 16 bits lose their lower eight; Pillow's own conversion would clip them."""
    if picture.mode not in ("I", "I;16", "I;16B", "I;16L"):
        return picture
    return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def read_control(data: bytes, kind: ControlKind, max_pixels: int, size: Size) -> Pixels:
    """A control image as the engine wants it, uint8 [size.height, size.width, 3].

    Raises:
        PictureError: see `decode`.
    """
    pixels = decode(data, max_pixels, size.width, size.height)
    return _light_on_dark(pixels) if kind == "edges" else pixels


def _light_on_dark(edges: Pixels) -> Pixels:
    """Edge maps are white lines on black; a mostly light one is a drawing on paper and is inverted."""
    return 255 - edges if edges.mean() > 127.5 else edges


def encode(
    pixels: Pixels, format: Format, quality: int = DEFAULT_QUALITY, notes: Mapping[str, str | int] | None = None
) -> bytes:
    """Encode uint8 [H, W, 3]. `quality` is 0 to 100, for JPEG and WebP; `notes` go into a PNG, as the text "pixart"."""
    if format == "png":
        return png.write(pixels, None if notes is None else {"pixart": json.dumps(notes)})
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if format == "jpeg":
        picture.save(buffer, "JPEG", quality=quality)
    else:
        picture.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def quick(*images: Pixels) -> bool:
    """Whether encoding all of `images` may well be done on the event loop."""
    return sum(image.nbytes for image in images) <= _QUICK


def to_png(pixels: Pixels) -> bytes:
    """Encode uint8 [H, W, 3], without notes."""
    return encode(pixels, "png")
