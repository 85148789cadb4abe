"""Cursors: where a page ends, as a text that the client hands back for the next one."""

from __future__ import annotations

import base64

from app.core.errors import InvalidRequest


def cursor_at(place: bytes) -> str:
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def place_of(cursor: str) -> bytes:
    """Raises InvalidRequest for a cursor that `cursor_at` never gave."""
    try:
        place = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except ValueError:
        raise foreign_cursor() from None
    if not place or cursor_at(place) != cursor:
        raise foreign_cursor()
    return place


def foreign_cursor() -> InvalidRequest:
    return InvalidRequest.at("query/cursor", "is not a cursor that this service gave")
