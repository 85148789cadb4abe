"""What a sandbox does with its network: its connections, and what was refused."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.context import context_of
from app.api.http.paging import PageQuery, page, sequence_of
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import problems
from app.api.schemas import answers
from app.api.schemas.views import json_page, network_event_body
from app.api.streams.events import LAST_EVENT_ID, MEDIA_TYPE, wants_events
from app.api.streams.network_events import EVENT_ID, NetworkEvents, last_event_of
from app.core.network_log import LoggedEvent, NetworkVerdict

router = APIRouter(tags=["sandboxes"], route_class=StrictRoute)

_DESCRIPTION = """Oldest first: each connection of the mode `proxy` once at its end, and each name and each request that
was refused. Of a sandbox the newest 1,000 are kept, also after its end, as long as its record. Without this mode the
list is empty.

With `Accept: text/event-stream` it is Server-Sent Events: `network` (`NetworkEvent`) for what is kept and then for what
comes, `gap` (`NetworkGap`) where events are missing, and `end` (`NetworkEnd`) when the sandbox has ended. `limit` then
has no meaning."""


class NetworkQuery(PageQuery):
    verdict: NetworkVerdict | None = None


@router.get(
    "/sandboxes/{sandbox_id}/network",
    operation_id="list_network_events",
    summary="List what a sandbox did with its network",
    description=_DESCRIPTION,
    response_model=answers.NetworkEventList,
    responses={
        200: {
            "description": "network events, in pages; Server-Sent Events to a client that accepts them",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        },
        **problems("invalid_request", "not_found", "capacity_exceeded"),
    },
    openapi_extra={
        "parameters": [
            {
                "name": LAST_EVENT_ID,
                "in": "header",
                "required": False,
                "schema": {"type": "string", "pattern": f"^{EVENT_ID}$"},
                "description": "for Server-Sent Events: go on behind this event",
            }
        ]
    },
)
async def list_network_events(request: Request, sandbox_id: str, query: Annotated[NetworkQuery, Query()]) -> Response:
    sandbox = context_of(request).sandboxes.use(sandbox_id)

    def wanted(logged: LoggedEvent) -> bool:
        return query.verdict is None or logged.event.verdict == query.verdict

    seen = last_event_of(request)
    if wants_events(request):
        if seen is None and query.cursor is not None:
            seen = sequence_of(query.cursor)
        begin = 0 if seen is None else seen + 1
        return NetworkEvents(request, sandbox, begin, wanted)
    log = sandbox.network_log
    items, next_cursor = await page(log or (), query, wanted)
    dropped = 0 if log is None else log.dropped
    return await json_page((network_event_body(logged.event) for logged in items), next_cursor, dropped=dropped)
