"""Routes of single files: read, ask, write, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from app.api.context import context_of
from app.api.http.bodies import media_type_of
from app.api.http.conditions import Conditions, describe, refuse_conditions
from app.api.http.downloads import Download, DownloadWriter
from app.api.http.errors import UnsupportedMediaType
from app.api.http.raw_query import PathQuery, read_query
from app.api.http.strict_route import StrictRoute
from app.api.http.uploads import Upload
from app.api.openapi.documents import problems
from app.api.openapi.file_documents import FILE_HEADERS, ON_FILES, ON_UPLOADS, raw_answer, raw_body, sends, takes
from app.api.schemas.strict import Mode

router = APIRouter(prefix="/sandboxes/{sandbox_id}/files", tags=["files"], route_class=StrictRoute)

OCTETS = "application/octet-stream"
_OF_CONTENT = ("content-length", "content-type", "accept-ranges")


class WriteQuery(PathQuery):
    mode: Annotated[
        Mode | None,
        Field(description="permissions in octal (default: those of the file that is replaced, 0644 for a new file)"),
    ] = None


class DeleteQuery(PathQuery):
    recursive: Annotated[bool, Field(description="delete a directory with everything in it")] = False


@router.get(
    "",
    operation_id="read_file",
    summary="Read a file",
    response_class=Response,
    responses={
        200: raw_answer(OCTETS, "the whole file", *FILE_HEADERS),
        206: raw_answer(OCTETS, "the part that was asked for", *FILE_HEADERS, "Content-Range"),
        304: {"description": "the client has it already", "headers": sends("ETag", "Last-Modified")},
        **problems(*ON_FILES, "precondition_failed", "range_not_satisfiable"),
    },
    openapi_extra=takes(
        PathQuery, "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"
    ),
)
async def read_file(request: Request, sandbox_id: str) -> Response:
    """Reads a regular file as it is at this moment. Links are followed, inside the sandbox."""
    path, _ = read_query(request, PathQuery)
    conditions = Conditions(request.headers)
    transfers = context_of(request).sandboxes.transfers

    async def answer(outlet: DownloadWriter) -> None:
        async with transfers.files(sandbox_id) as files, files.open(path) as file:
            headers, size = describe(file.stat), file.stat.size
            if conditions.not_modified(file.stat):
                await outlet.begin(304, {name: v for name, v in headers.items() if name not in _OF_CONTENT})
            elif (part := conditions.part(file.stat)) is None:
                await outlet.deliver(200, headers, file.read(0, size))
            else:
                begin, end = part
                headers |= {"content-length": str(end - begin), "content-range": f"bytes {begin}-{end - 1}/{size}"}
                await outlet.deliver(206, headers, file.read(begin, end - begin))

    return Download(request, answer)


@router.head(
    "",
    operation_id="stat_file",
    summary="Ask what is at a path",
    response_class=Response,
    responses={
        200: {"description": "something is there; `File-Type` says what", "headers": sends(*FILE_HEADERS)},
        304: {"description": "the client knows it already", "headers": sends("ETag", "Last-Modified")},
        **problems(*ON_FILES, "precondition_failed"),
    },
    openapi_extra=takes(PathQuery, "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"),
)
async def stat_file(request: Request, sandbox_id: str) -> Response:
    """Works for anything that exists. Links are followed. Only a regular file has `Content-Length` and
    `Accept-Ranges`."""
    path, _ = read_query(request, PathQuery)
    conditions = Conditions(request.headers)
    async with context_of(request).sandboxes.transfers.files(sandbox_id) as files:
        stat = await files.stat(path)
    known = conditions.not_modified(stat)
    headers = {name: v for name, v in describe(stat).items() if not known or name not in _OF_CONTENT}

    async def answer(outlet: DownloadWriter) -> None:
        await outlet.begin(304 if known else 200, headers)

    return Download(request, answer)


@router.put(
    "",
    operation_id="write_file",
    summary="Write a file",
    status_code=204,
    response_class=Response,
    responses={
        201: {"description": "the file is new"},
        204: {"description": "the file existed and was replaced"},
        **problems(*ON_UPLOADS, "precondition_failed"),
    },
    openapi_extra={
        **takes(WriteQuery, "If-Match", "If-None-Match", "If-Unmodified-Since"),
        **raw_body(OCTETS, "the content, of any media type but multipart/…; it is stored as it is"),
    },
)
async def write_file(request: Request, sandbox_id: str) -> Response:
    """Replaces the file as a whole or not at all. Until the last byte has arrived the old file stays, or none. The same
    holds when something fails or the client disconnects. Missing parents are made. Preconditions hold at the moment of
    the replacement."""
    if media_type_of(request).startswith("multipart/"):
        raise UnsupportedMediaType(
            "a form (multipart) is not allowed, as its boundaries would be stored too; send only the bytes of the file"
        )
    upload = Upload(request)
    path, query = read_query(request, WriteQuery)
    check = Conditions(request.headers).for_writes
    async with context_of(request).sandboxes.transfers.files(sandbox_id) as files:
        new = await files.write(path, upload, mode=None if query.mode is None else int(query.mode, 8), check=check)
    return Response(status_code=201 if new else 204)


@router.delete(
    "",
    operation_id="delete_file",
    summary="Delete a file or a tree",
    status_code=204,
    response_class=Response,
    responses=problems(*ON_FILES, "conflict"),
    openapi_extra=takes(DeleteQuery),
)
async def delete_file(request: Request, sandbox_id: str) -> Response:
    """Deletes what the path itself names: a link and not its target. A directory that is not empty needs
    `recursive`."""
    refuse_conditions(request.headers)
    path, query = read_query(request, DeleteQuery)
    async with context_of(request).sandboxes.transfers.files(sandbox_id) as files:
        await files.delete(path, recursive=query.recursive)
    return Response(status_code=204)
