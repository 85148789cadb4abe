"""Request bodies: JSON, at most 4 MiB, within 30 seconds, checked by a schema."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.api.deps import BODY_LIMIT, edge_of
from app.api.hangup import ClientGone
from app.api.problems import BodyTooSlow, UnsupportedMediaType, field_errors
from app.core.errors import FieldError, InvalidRequest, PayloadTooLarge

M = TypeVar("M", bound=BaseModel)


async def read_json(request: Request, model: type[M]) -> M:
    """Raises UnsupportedMediaType, PayloadTooLarge, InvalidRequest; ClientGone when the client hangs up."""
    _check_headers(request)
    patience = edge_of(request).patience.body
    try:
        async with asyncio.timeout(patience):
            body = await _read(request)
    except TimeoutError:
        sentence = f"the body did not arrive within {patience:g} seconds"
        raise BodyTooSlow([FieldError("", sentence)]) from None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequest(field_errors(found)) from None


def _check_headers(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (media_type.startswith("application/") and media_type[-5:] == "+json"):
        raise UnsupportedMediaType(f"the body is {media_type or 'of no stated type'}; send application/json")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > BODY_LIMIT:
        raise PayloadTooLarge(BODY_LIMIT)


async def _read(request: Request) -> bytes:
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT:
            raise PayloadTooLarge(BODY_LIMIT)
        if not message.get("more_body", False):
            return bytes(body)
