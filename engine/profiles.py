"""Which shapes an engine is compiled for: ranges of a bundle's dimensions, a profile for each class of image sizes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.manifest import Manifest, Size, TensorSpec, parse_dimension

Range = tuple[int, int, int]  # smallest, most usual, largest
VAE_SCALE = 8
# Image sizes belong to a class if their area is this close to the square's: aspect-ratio bins differ by a few per cent.
AREA_TOLERANCE = 0.25


class ProfileError(ValueError):
    """A profile cannot be had of this bundle; the message says which, and what there is."""


@dataclass(frozen=True)
class ShapeProfile:
    """A range (smallest, most usual, largest) for each symbol of a bundle's dimensions."""

    name: str
    ranges: Mapping[str, Range]

    def shapes(self, tensor: TensorSpec) -> tuple[tuple[int, ...], ...]:
        """The tensor's smallest, most usual and largest shape."""
        return tuple(tuple(self._size(dimension, place) for dimension in tensor.shape) for place in range(3))

    def _size(self, dimension: int | str, place: int) -> int:
        if isinstance(dimension, int):
            return dimension
        factor, symbol = parse_dimension(dimension)
        return factor * self.ranges[symbol][place]

    def restricted(self, tensors: Sequence[TensorSpec]) -> Mapping[str, Range]:
        """The ranges of those symbols alone that occur in `tensors`."""
        symbols = {parse_dimension(size)[1] for tensor in tensors for size in tensor.shape if isinstance(size, str)}
        return {symbol: self.ranges[symbol] for symbol in sorted(symbols)}


def make_profiles(manifest: Manifest, wanted: Sequence[str] = (), max_batch: int | None = None) -> list[ShapeProfile]:
    """The profiles `wanted`, such as `512` (all allowed sizes of about 512·512 pixels) or `640x384` (that size alone).

    Without any, the bundle's allowed sizes fall into classes by themselves. Batches are from one sample, which is the
    most usual, to `max_batch` (the bundle's limit).

    Raises:
        ProfileError: no allowed size is in a wanted profile, or `max_batch` is outside the bundle's limits.
    """
    batch = manifest.dimensions["B"]
    most = batch.max if max_batch is None else max_batch
    if not batch.min <= most <= batch.max:
        raise ProfileError(f"max batch {most} is not within the bundle's {batch.min} to {batch.max}")
    sizes = manifest.images.allowed
    groups = {name: _sizes_of(name, sizes) for name in wanted} if wanted else _classes(sizes)
    return [_profile(manifest, name, group, most) for name, group in groups.items()]


def parse_profile(text: str) -> tuple[int, int]:
    """(width, height) in pixels of `512` or `640x384`.

    Raises:
        ProfileError: it is neither.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise ProfileError(f"profile {text!r} is neither a side such as 512 nor a size such as 640x384")
    return int(match[1]), int(match[2] or match[1])


def _sizes_of(name: str, sizes: Sequence[Size]) -> list[Size]:
    width, height = parse_profile(name)
    if "x" in name:
        found = [size for size in sizes if (size.width, size.height) == (width, height)]
    else:
        found = [size for size in sizes if abs(size.width * size.height / width**2 - 1) <= AREA_TOLERANCE]
    if not found:
        known = ", ".join(f"{size.width}x{size.height}" for size in sizes)
        raise ProfileError(f"profile {name} contains none of the bundle's sizes: {known}")
    return found


def _classes(sizes: Sequence[Size]) -> dict[str, list[Size]]:
    """Sizes by area, each class named by its first member."""
    groups: list[list[Size]] = []
    for size in sizes:
        area = size.width * size.height
        for group in groups:
            if abs(area / (group[0].width * group[0].height) - 1) <= AREA_TOLERANCE:
                group.append(size)
                break
        else:
            groups.append([size])
    return {f"{group[0].width}x{group[0].height}": group for group in groups}


def _profile(manifest: Manifest, name: str, sizes: Sequence[Size], max_batch: int) -> ShapeProfile:
    tokens = manifest.dimensions["L"]
    usual = min(sizes, key=lambda size: abs(size.width - size.height))
    heights, widths = ([size.height // VAE_SCALE for size in sizes], [size.width // VAE_SCALE for size in sizes])
    h = (min(heights), usual.height // VAE_SCALE, max(heights))
    w = (min(widths), usual.width // VAE_SCALE, max(widths))
    patch = manifest.positions.patch_size**2
    # N follows from H and W at all three points: a compiler that tries them would find a contradiction else.
    n = (h[0] * w[0] // patch, h[1] * w[1] // patch, h[2] * w[2] // patch)
    least = manifest.dimensions["B"].min
    ranges = {
        "B": (least, least, max_batch),
        "L": (tokens.min, tokens.max, tokens.max),  # captions are always padded to the limit
        "H": h,
        "W": w,
        "N": n,
    }
    return ShapeProfile(name, ranges)
