"""Request bodies: JSON and multipart forms, checked against a schema without holding up the event loop."""

import asyncio
import codecs
from collections.abc import AsyncGenerator
from functools import partial
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.errors import ApiError, malformed, quote

JSON = "application/json"
FORM = "multipart/form-data"

# Smaller bodies take less time to read than a thread takes to start.
_IN_THREAD_ABOVE = 1 << 16  # bytes
# A form is parsed on the event loop, so in pieces that take a millisecond even when made to be slow.
_PIECE = 1 << 14  # bytes
_MAX_FIELDS = 32
_MAX_FILES = 4
_MAX_FIELD_BYTES = 1 << 16
# As `codecs.lookup` names them. Python knows many more, and not all of them are text, or fail as text does.
_CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1"})

M = TypeVar("M", bound=BaseModel)


class _FormParser(MultiPartParser):
    """Keeps files in memory, which the limit of bodies allows, and so never waits for a disk."""

    spool_max_size = 0  # 0: no limit


async def read_json(request: Request, model: type[M]) -> M:
    """The body as `model`.

    Raises:
        ApiError: it is no JSON, or not such an object; the first wrong field is named.
    """
    _expect(request, JSON)
    body = await request.body()
    parse = partial(model.model_validate_json, body)
    try:
        return parse() if len(body) <= _IN_THREAD_ABOVE else await asyncio.to_thread(parse)
    except ValidationError as error:
        raise malformed(error.errors(include_url=False, include_input=False)) from error


async def read_form(request: Request, model: type[M]) -> tuple[M, bytes]:
    """The fields of a multipart form as `model`, and the bytes of its one file, `image` (or `image[]`).

    Raises:
        ApiError: it is no such form; the first wrong field is named.
    """
    _expect(request, FORM)
    limits = {"max_files": _MAX_FILES, "max_fields": _MAX_FIELDS, "max_part_size": _MAX_FIELD_BYTES}
    parser = _FormParser(request.headers, _pieces(request.stream()), **limits)
    try:
        _check_charset(request.headers["content-type"])
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:
        raise ApiError(400, f"the body is not a usable form: {quote(str(error))}", code="invalid_form") from error
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        if name in fields or name in files:
            raise ApiError(422, f"{quote(name)} is given twice", param=quote(name), code="invalid_value")
        if isinstance(value, UploadFile):
            files[name] = await value.read()
        else:
            fields[name] = value
    await form.close()
    return _check(fields, files, model)


def _check(fields: dict[str, str], files: dict[str, bytes], model: type[M]) -> tuple[M, bytes]:
    for name in files:
        if name != "image":
            raise ApiError(422, f"{quote(name)} is not a known file", param=quote(name), code="unknown_parameter")
    if "image" in fields:
        raise ApiError(422, "image must be a file with a filename", param="image", code="invalid_value")
    if "image" not in files:
        raise ApiError(422, "image is required", param="image", code="missing_parameter")
    try:
        return model.model_validate_strings(fields), files["image"]
    except ValidationError as error:
        raise malformed(error.errors(include_url=False, include_input=False)) from error


def _check_charset(content_type: str) -> None:
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").decode("latin-1")
    try:
        known = codecs.lookup(charset).name in _CHARSETS
    except LookupError:
        known = False
    if not known:
        raise ValueError(f"its charset is {quote(charset)!r}, not utf-8, us-ascii or latin-1")


async def _pieces(stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async for chunk in stream:
        for start in range(0, len(chunk), _PIECE):
            yield chunk[start : start + _PIECE]
            await asyncio.sleep(0)


def _expect(request: Request, media_type: str) -> None:
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != media_type:
        message = f"Content-Type is {quote(sent)!r}; the body must be sent as {media_type}"
        raise ApiError(415, message, code="unsupported_media_type")
