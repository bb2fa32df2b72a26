"""In which form an answer goes out: JSON, or the bytes of one picture, as the Accept header has it."""

from server.pictures import Format

_OFFERS: dict[str, Format | None] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
    "application/json": None,
    "text/event-stream": None,
    "*/*": None,
}


def raw_format(accept: str, default: Format | None) -> Format | None:
    """The picture format that the client likes better than JSON; None: JSON.

    `image/*` means `default`, or PNG. Among equals, the first counts, so that `*/*` alone, which everybody sends, is
    JSON.
    """
    offers: dict[str, Format | None] = {"image/*": default or "png", **_OFFERS}
    best: Format | None = None
    best_quality = 0.0
    for part in accept.lower().split(","):
        media_type, _, rest = part.partition(";")
        quality = _quality(rest)
        if quality > best_quality and (name := media_type.strip()) in offers:
            best, best_quality = offers[name], quality
    return best


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
