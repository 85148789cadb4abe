"""Routes of directories: list, make."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.api.context import context_of
from app.api.http.conditions import refuse_conditions
from app.api.http.cursors import cursor_at, foreign_cursor, place_of
from app.api.http.raw_query import PathQuery, read_query
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import problems
from app.api.openapi.file_documents import ON_FILES, takes
from app.api.schemas.answers import AnswerSchema
from app.api.schemas.views import Body, json_page
from app.core.files import DirectoryEntry, FileKind

router = APIRouter(prefix="/sandboxes/{sandbox_id}/directory", tags=["files"], route_class=StrictRoute)

LONGEST_NAME = 255  # bytes, as the kernel's
_LONGEST_CURSOR = 4 * LONGEST_NAME // 3 + 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DirectoryListQuery(PathQuery):
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Annotated[str | None, Field(max_length=_LONGEST_CURSOR, description="`next_cursor` of the page before")] = (
        None
    )


Absent = Field(default_factory=lambda: None, description="the bytes of the name, if they are not UTF-8; else absent")


class DirectoryItem(AnswerSchema):
    """The content of a directory. Links are not followed."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    name: str = Field(description="U+FFFD replaces what is not UTF-8")
    name_base64: str | SkipJsonSchema[None] = Absent
    type: FileKind
    size: int = Field(description="in bytes")
    mode: str = Field(description="permissions in octal")
    modified_at: datetime | None = Field(description="of the content; null for a time after the year 9999")
    target: str | None = Field(description="of a link, as it is written; else null")
    target_base64: str | SkipJsonSchema[None] = Absent


class Directory(AnswerSchema):
    items: list[DirectoryItem]
    next_cursor: str | None


@router.get(
    "",
    operation_id="list_directory",
    summary="List a directory",
    response_model=Directory,
    responses=problems(*ON_FILES),
    openapi_extra=takes(DirectoryListQuery),
)
async def list_directory(request: Request, sandbox_id: str) -> Response:
    """Items are in the order of their names' bytes. Changes between two pages do not shift them."""
    path, query = read_query(request, DirectoryListQuery)
    after = None if query.cursor is None else _name_of(query.cursor)
    async with context_of(request).sandboxes.transfers.files(sandbox_id) as files:
        listing = await files.list(path, after, query.limit)
    last = listing.entries[-1].name if listing.entries else after
    next_cursor = cursor_at(last) if listing.more and last is not None else None
    return await json_page(map(_item, listing.entries), next_cursor)


@router.put(
    "",
    operation_id="make_directory",
    summary="Make a directory",
    status_code=201,
    response_class=Response,
    responses={
        201: {"description": "the directory is new"},
        204: {"description": "the directory exists already"},
        **problems(*ON_FILES, "disk_full"),
    },
    openapi_extra=takes(PathQuery),
)
async def make_directory(request: Request, sandbox_id: str) -> Response:
    """Makes missing parents too. Repeatable."""
    refuse_conditions(request.headers)
    path, _ = read_query(request, PathQuery)
    async with context_of(request).sandboxes.transfers.files(sandbox_id) as files:
        new = await files.make_directory(path)
    return Response(status_code=201 if new else 204)


def _name_of(cursor: str) -> bytes:
    """Raises InvalidRequest for what `list_directory` never gave."""
    name = place_of(cursor)
    if b"/" in name or b"\0" in name:
        raise foreign_cursor()
    return name


def _item(entry: DirectoryEntry) -> Body:
    stat = entry.stat
    item: Body = {
        **_text("name", entry.name),
        "type": stat.kind,
        "size": stat.size,
        "mode": f"{stat.mode:04o}",
        "modified_at": _time(stat.modified_ns),
    }
    return item | ({"target": None} if entry.target is None else _text("target", entry.target))


def _text(key: str, value: bytes) -> Body:
    try:
        return {key: value.decode()}
    except UnicodeDecodeError:
        return {key: value.decode(errors="replace"), f"{key}_base64": base64.b64encode(value).decode()}


def _time(nanoseconds: int) -> datetime | None:
    try:
        return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:
        return None
