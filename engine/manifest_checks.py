"""What the fields of a manifest have to do with each other, so that every request that it allows can be served."""

from collections.abc import Iterator

from engine.manifest import MAX_TOKENS, Manifest, ModuleName, Size
from engine.profiles import VAE_SCALE

PADDING_MULTIPLE = 8  # as the tokenizer pads prompts (engine/tokenizer.py)
SYMBOLS = ("B", "L", "H", "W", "N")
DENOISERS: tuple[ModuleName, ...] = ("denoiser", "denoiser_control")
SIZE_INPUTS = ("resolution", "aspect_ratio")


def contradictions(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Each field that is at odds with another, and the problem in words; none in a sound manifest."""
    yield from _sampler(manifest)
    missing = [symbol for symbol in SYMBOLS if symbol not in manifest.dimensions]
    if missing:
        yield f"dimensions.{missing[0]}", "is missing"
        return
    yield from _batches_and_tokens(manifest)
    for size in manifest.images.allowed:
        yield from _size(manifest, size)
    yield from _denoisers(manifest)


def _sampler(manifest: Manifest) -> Iterator[tuple[str, str]]:
    sampler = manifest.sampler
    if sampler.beta_start > sampler.beta_end:
        yield "sampler.beta_start", f"{sampler.beta_start} is above beta_end {sampler.beta_end}"
    if sampler.origin_steps > sampler.train_timesteps:
        yield "sampler.origin_steps", f"{sampler.origin_steps} is above train_timesteps {sampler.train_timesteps}"


def _batches_and_tokens(manifest: Manifest) -> Iterator[tuple[str, str]]:
    batch, tokens = manifest.dimensions["B"], manifest.dimensions["L"]
    if not batch.allows(1) or batch.multiple != 1:
        yield "dimensions.B", "does not begin at single samples"
    # Prompts are padded for the text encoder, and their captions to the largest length for the denoiser.
    longest = -(-manifest.max_tokens // PADDING_MULTIPLE) * PADDING_MULTIPLE
    if PADDING_MULTIPLE % tokens.multiple or not all(map(tokens.allows, (PADDING_MULTIPLE, longest, tokens.max))):
        yield "dimensions.L", f"does not allow every multiple of {PADDING_MULTIPLE} up to max_tokens and its own max"
    if tokens.max > MAX_TOKENS:
        yield "dimensions.L", f"max {tokens.max} is above {MAX_TOKENS}"


def _size(manifest: Manifest, size: Size) -> Iterator[tuple[str, str]]:
    patch = manifest.positions.patch_size
    if size.width % (VAE_SCALE * patch) or size.height % (VAE_SCALE * patch):
        yield "images.allowed", f"{size.width}x{size.height} is not a multiple of {VAE_SCALE * patch}"
        return
    height, width = size.height // VAE_SCALE, size.width // VAE_SCALE
    for symbol, value in (("H", height), ("W", width), ("N", height * width // patch**2)):
        if not manifest.dimensions[symbol].allows(value):
            yield f"dimensions.{symbol}", f"does not allow {value}, which {size.width}x{size.height} pixels need"


def _denoisers(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for name in DENOISERS:
        module = manifest.modules.get(name)
        if module is None:
            continue
        inputs = {tensor.name: tensor for tensor in module.inputs}
        if "position" not in inputs or inputs["position"].shape[-1:] != (manifest.positions.width,):
            yield "positions.width", f"{manifest.positions.width} is not what the input position of {name} has last"
        for tensor in SIZE_INPUTS:
            if (tensor in inputs) != manifest.size_conditions:
                has = "has" if tensor in inputs else "lacks"
                yield (
                    "size_conditions",
                    f"is {str(manifest.size_conditions).lower()}, but {name} {has} the input {tensor}",
                )
