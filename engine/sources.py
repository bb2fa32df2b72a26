"""A bundle's modules as a backend compiles them, with the sizes that the engine will call them with."""

from collections.abc import Sequence

from engine.backends.base import Source, Usual
from engine.bundle import Bundle
from engine.manifest import ModuleName
from engine.profiles import VAE_SCALE

# Whoever runs many pictures at once calls with these numbers of samples; all others are made up of them.
BATCHES = (1, 2, 4)
# For these a batch costs less than its samples one by one. A decoder is busy enough with one, and control images the
# engine encodes one by one.
BATCHED: tuple[ModuleName, ...] = ("denoiser", "denoiser_control")
# Prompts have many lengths, so no size of it is usual.
VARIED: tuple[ModuleName, ...] = ("text_encoder",)
# A graph for exact sizes holds the weights once more. It saves what a call costs beside its products, which is much of
# a small module's time and little of a large one's.
MOST_WEIGHTS = 64 * 1024 * 1024


def module_source(bundle: Bundle, name: ModuleName, batches: Sequence[int] = BATCHES) -> Source:
    """A module to compile, for pictures of the default size in batches of `batches` above all.

    Raises:
        BundleError: the bundle has no such module.
    """
    spec = bundle.module(name)
    usual = None if name in VARIED or _weights(bundle, name) > MOST_WEIGHTS else _usual(bundle, name, batches)
    return Source(bundle.path(spec.graph), spec, bundle.manifest.dimensions, bundle.digest(name), usual)


def _weights(bundle: Bundle, name: ModuleName) -> int:
    """Bytes of a module's weights."""
    return sum(bundle.manifest.files[path].bytes for path in bundle.module(name).weights)


def _usual(bundle: Bundle, name: ModuleName, batches: Sequence[int]) -> Usual:
    manifest = bundle.manifest
    size = manifest.images.default
    height, width = size.height // VAE_SCALE, size.width // VAE_SCALE
    dimensions = {
        "L": manifest.dimensions["L"].max,  # captions are always padded to the limit
        "H": height,
        "W": width,
        "N": height * width // manifest.positions.patch_size**2,
    }
    most = manifest.dimensions["B"].max if name in BATCHED else 1
    return Usual(
        batches=tuple(batch for batch in sorted(batches) if batch <= most),
        dimensions=dimensions,
        always=len(manifest.images.allowed) == 1,
    )
