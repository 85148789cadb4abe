"""The stored output of an execution as raw bytes, with long polling."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.context import context_of, waiting_request
from app.api.http.disconnect import until_disconnect
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import problems
from app.api.streams.viewing import check_offset, check_readable
from app.core.models import Channel
from app.core.output import OutputLog

router = APIRouter(
    prefix="/sandboxes/{sandbox_id}/executions/{execution_id}", tags=["executions"], route_class=StrictRoute
)

DEFAULT_LIMIT = 1024 * 1024
# Read in one go, so it bounds how long everybody else waits: 4 MiB from a spill file take about 2 ms.
LIMIT = 4 * 1024 * 1024


class OutputQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    channel: Channel = Channel.STDOUT
    offset: Annotated[int, Field(ge=0, description="position in bytes from the beginning of the channel")] = 0
    limit: Annotated[int, Field(ge=1, le=LIMIT, description="most bytes to return")] = DEFAULT_LIMIT
    wait_seconds: Annotated[float, Field(ge=0, le=60, description="how long to hold an empty answer, in seconds")] = 0


def _header(description: str, kind: str = "integer") -> dict[str, object]:
    return {"description": description, "schema": {"type": kind}}


@router.get(
    "/output",
    operation_id="get_output",
    summary="Read stored output of one channel",
    response_class=Response,
    responses={
        200: {
            "description": "raw bytes, exactly as the program wrote them",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "headers": {
                "Output-Offset": _header("offset of the first byte; later than asked for when bytes were dropped"),
                "Output-Next-Offset": _header("the offset to ask for next"),
                "Output-Total": _header("bytes that the program has printed on this channel so far"),
                "Output-Complete": _header("true when nothing can come after this body", "boolean"),
            },
        },
        **problems("invalid_request", "not_found", "wrong_state", "range_not_satisfiable", "capacity_exceeded"),
    },
)
async def get_output(
    request: Request, sandbox_id: str, execution_id: str, query: Annotated[OutputQuery, Query()]
) -> Response:
    sandboxes = context_of(request).sandboxes
    sandbox, execution = sandboxes.get(sandbox_id), sandboxes.execution(sandbox_id, execution_id)
    check_readable(sandbox)
    log = execution.logs[query.channel]
    check_offset(log, query.offset, query.channel)
    if query.wait_seconds and log.total == query.offset and not log.closed:
        with waiting_request(request):
            await until_disconnect(request.receive, _growth(log, query.wait_seconds))
        check_readable(sandbox)
    begin = max(query.offset, log.start)
    body = _read(log, begin, query.limit)
    end = begin + len(body)
    return Response(
        body,
        headers={
            "output-offset": str(begin),
            "output-next-offset": str(end),
            "output-total": str(log.total),
            "output-complete": "true" if log.closed and end == log.total else "false",
        },
        media_type="application/octet-stream",
    )


def _read(log: OutputLog, begin: int, limit: int) -> bytes:
    pieces: list[bytes] = []
    at, end = begin, min(begin + limit, log.total)
    while at < end and at >= log.start and (piece := log.read(at, end - at)):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


async def _growth(log: OutputLog, seconds: float) -> None:
    changed = asyncio.Event()
    log.watch(changed.set)
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
    finally:
        log.unwatch(changed.set)
