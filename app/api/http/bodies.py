"""Request bodies: JSON of at most 4 MiB (8 MiB for a run), within 30 seconds, checked by a schema."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request

from app.api.context import BODY_LIMIT, RUN_BODY_LIMIT, context_of, visitor_of
from app.api.http.complexity import check_complexity
from app.api.http.disconnect import ClientDisconnected
from app.api.http.errors import BodyTooSlow, UnsupportedMediaType
from app.api.http.validation import invalid_request, refuse_doubled_keys, refuse_fewer_names
from app.core.errors import FieldError, InvalidRequest, PayloadTooLarge
from app.core.timeslices import TimeSlices

M = TypeVar("M", bound=BaseModel)
_LARGE = 256 * 1024
_RUN = re.compile(r"(/sandboxes/[^/]+)?/run")


async def read_json(request: Request, model: type[M]) -> M:
    """Raises UnsupportedMediaType, PayloadTooLarge, InvalidRequest; ClientDisconnected when the client disconnects."""
    _check_media_type(request)
    body = await read_body(request)
    names = await check_complexity(body)
    try:
        found = model.model_validate_json(body)
    except ValidationError as error:
        if not body:
            raise InvalidRequest.at("", "the body is empty; send a JSON object, {} for all defaults") from None
        raise invalid_request(error, model) from None
    if names is None or len(body) <= _LARGE:
        refuse_doubled_keys(body)
    else:
        await TimeSlices.of_loop().next()  # each of the two takes a slice of its own
        refuse_fewer_names(body, names)
    return found


async def read_body(request: Request) -> bytes:
    """Reads a body up to the limit of the path. Raises PayloadTooLarge, BodyTooSlow, CapacityExceeded;
    ClientDisconnected when the client disconnects."""
    limit, seconds = body_limit(request.scope["path"]), context_of(request).timeouts.body
    check_content_length(request.headers, limit)
    try:
        async with asyncio.timeout(seconds):
            with context_of(request).shares.bodies.taking(visitor_of(request).client) as take:
                return await _read(request, limit, take)
    except TimeoutError:
        sentence = f"the body did not arrive within {seconds:g} seconds"
        raise BodyTooSlow([FieldError("", sentence)]) from None


def check_content_length(headers: Headers, limit: int) -> None:
    """A body that is said to be too large is refused before it comes. Raises PayloadTooLarge."""
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise PayloadTooLarge(limit)


def body_limit(path: str) -> int:
    return RUN_BODY_LIMIT if _RUN.fullmatch(path) else BODY_LIMIT


def media_type_of(request: Request) -> str:
    """The media type of the body, in lower case and without parameters. Empty when the request has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_media_type(request: Request) -> None:
    media_type = media_type_of(request)
    if media_type != "application/json" and not (media_type.startswith("application/") and media_type[-5:] == "+json"):
        found = f"is {media_type}" if media_type else "has no Content-Type"
        raise UnsupportedMediaType(f"the body {found}; send application/json")


async def _read(request: Request, limit: int, take: Callable[[int], None]) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise PayloadTooLarge(limit)
        take(len(piece))
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)
