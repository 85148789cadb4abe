"""Routes of archives: whole trees as tar streams."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.api.context import context_of
from app.api.http.conditions import refuse_conditions
from app.api.http.downloads import Download, DownloadWriter
from app.api.http.raw_query import PathQuery, read_query
from app.api.http.strict_route import StrictRoute
from app.api.http.uploads import Upload
from app.api.openapi.documents import problems
from app.api.openapi.file_documents import ON_FILES, ON_UPLOADS, raw_answer, raw_body, takes
from app.core.archive import checked_names
from app.core.tar import archive, entries
from app.core.transfers import closing

router = APIRouter(prefix="/sandboxes/{sandbox_id}/archive", tags=["files"], route_class=StrictRoute)

TAR = "application/x-tar"


@router.get(
    "",
    operation_id="read_archive",
    summary="Read a tree as a tar stream",
    response_class=Response,
    responses={200: raw_answer(TAR, "an uncompressed POSIX tar stream"), **problems(*ON_FILES)},
    openapi_extra=takes(PathQuery),
)
async def read_archive(request: Request, sandbox_id: str) -> Response:
    """Names are relative to the tree's root. Links are links. Sockets, FIFOs and devices are left out. A failure after
    the first byte closes the connection, so that a part never looks like the whole."""
    path, _ = read_query(request, PathQuery)
    transfers = context_of(request).sandboxes.transfers

    async def answer(outlet: DownloadWriter) -> None:
        async with transfers.files(sandbox_id) as files, files.pack(path) as items, closing(items):
            await outlet.deliver(200, {"content-type": TAR}, archive(items))

    return Download(request, answer)


@router.put(
    "",
    operation_id="write_archive",
    summary="Unpack a tar stream",
    status_code=204,
    response_class=Response,
    responses=problems(*ON_UPLOADS, "invalid_archive"),
    openapi_extra={**takes(PathQuery), **raw_body(TAR, "an uncompressed tar stream: ustar, pax or GNU")},
)
async def write_archive(request: Request, sandbox_id: str) -> Response:
    """Unpacks below a directory, which is made. Directories are joined, files are replaced. When an entry is refused,
    or anything else fails, nothing of the archive is left."""
    upload = Upload(request)
    refuse_conditions(request.headers)
    path, _ = read_query(request, PathQuery)
    async with (
        context_of(request).sandboxes.transfers.unpacking(sandbox_id) as files,
        closing(entries(upload)) as read,
        closing(checked_names(read)) as items,
    ):
        await files.unpack(path, items)
    return Response(status_code=204)
