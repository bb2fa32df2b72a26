"""Requests that work with any model, for the OpenAPI description. A test runs every one of them."""

from typing import Any

_PROMPT = "a red apple on a blue background"

# A square, white on black: an edge map.
SQUARE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQAAAACCEkxzAAAAJklEQVR42mNgGFyAkYHhPwMDAyMDE5LgAQYGZgaEyMhhYA2N"
    "QQUAyv8DAL1fT0UAAAAASUVORK5CYII="
)


def _example(summary: str, **value: Any) -> dict[str, Any]:
    return {"summary": summary, "value": {"prompt": _PROMPT, **value}}


GENERATIONS = {
    "prompt": _example("A picture from a prompt"),
    "seed": _example("The same picture each time, in three steps", seed=7, steps=3),
    "several": _example("Two pictures as WebP", n=2, output_format="webp", output_compression=80),
    "control": _example(
        "A picture that follows a drawing", seed=7, control={"image": SQUARE, "type": "edges", "strength": 1.0}
    ),
    "stream": _example("Unfinished pictures on the way", stream=True, partial_images=2),
    "size": _example("The model's size that is most like 16:9", size="1920x1080", size_match="nearest"),
    "hurry": _example("Fewer steps rather than a late picture", steps=4, min_steps=2, timeout=60, priority="batch"),
}

# The file `image` goes with each of them.
EDITS = {
    "edit": _example("A picture with the same edges", seed=7, strength=0.8),
    "drawing": _example("A picture from a drawing", control_type="edges", output_format="jpeg"),
}
