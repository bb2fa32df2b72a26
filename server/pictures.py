"""Pictures on the wire: control images in, PNG out. Slow enough that callers run it in a thread."""

import base64
import binascii
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.manifest import Size
from engine.request import ControlKind

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP")
MIN_SIDE = 8  # pixels


class PictureError(ValueError):
    """A control image is refused; the message says why, and names the limit if it is one."""


def from_base64(text: str) -> bytes:
    """The bytes behind base64 text, with or without a `data:` prefix.

    Raises:
        PictureError: the text is not base64.
    """
    if text.startswith("data:"):
        _, _, text = text.partition(",")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError("is not base64") from error


def decode(data: bytes, max_pixels: int, width: int, height: int) -> Pixels:
    """Read a PNG, JPEG or WebP picture to uint8 [height, width, 3]: scaled to cover, then cropped about the centre.

    The header is read first, and a picture of more than `max_pixels` is refused before any of its pixels is decoded.
    Transparent parts come out white, like paper. A rotation noted by a camera is applied.

    Raises:
        PictureError: not such a picture, damaged, too large or too small.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            _check_size(file, max_pixels)
            upright = ImageOps.exif_transpose(file)
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("is not a PNG, JPEG or WebP picture") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"has too many pixels; at most {max_pixels} are allowed") from error
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise PictureError("is damaged and cannot be decoded") from error
    picture = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return np.array(picture)


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    size = f"{picture.width}x{picture.height} pixels"
    if picture.width * picture.height > max_pixels:
        raise PictureError(f"has {size}; at most {max_pixels} in all are allowed")
    if min(picture.size) < MIN_SIDE:
        raise PictureError(f"has {size}; at least {MIN_SIDE}x{MIN_SIDE} are needed")


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


def to_png(pixels: Pixels) -> bytes:
    """Encode uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
