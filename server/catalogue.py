"""What GET /v1/models says about the served model."""

from engine.manifest import Manifest
from engine.request import MAX_PROMPT_CHARACTERS
from server.errors import ApiError, quote
from server.schemas import MAX_IMAGES, Limits, Model


def describe(manifest: Manifest, created: int) -> Model:
    """The model's entry; `created` is in seconds since 1970."""
    default, steps = manifest.images.default, manifest.steps
    return Model(
        id=manifest.name,
        created=created,
        owned_by="pixart-delta-server",
        licence=manifest.licence,
        limits=Limits(
            sizes=[f"{size.width}x{size.height}" for size in manifest.images.allowed],
            default_size=f"{default.width}x{default.height}",
            steps=(steps.min, steps.max),
            default_steps=steps.default,
            images=(1, MAX_IMAGES),
            prompt_characters=MAX_PROMPT_CHARACTERS,
            prompt_tokens=manifest.max_tokens,
            control=manifest.controllable,
        ),
    )


def not_found(name: str, manifest: Manifest) -> ApiError:
    """Another model is wanted than the one that is served."""
    message = f"model {quote(name)!r} is not served here; this server has {manifest.name!r}"
    return ApiError(404, message, param="model", code="model_not_found")
