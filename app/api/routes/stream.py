"""The stream of one execution. Everything that can be refused is refused before the upgrade or the first event. Then
`StreamSession` runs it as a WebSocket, or `ExecutionEvents` as Server-Sent Events."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response, WebSocket
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send

from app.api.context import context_of, request_id_of
from app.api.http.errors import UpgradeRequired
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import problems
from app.api.streams.events import LAST_EVENT_ID, MEDIA_TYPE, wants_events
from app.api.streams.execution_events import ExecutionEvents
from app.api.streams.stream import StreamSession, WebSocketEncoding
from app.api.streams.viewing import StreamQuery, admitted, query_of
from app.core.errors import NotFound

router = APIRouter(tags=["executions"], route_class=StrictRoute)
PATH = "/sandboxes/{sandbox_id}/executions/{execution_id}/stream"

_DESCRIPTION = """A WebSocket. OpenAPI cannot describe one: the frames are the schemas `StreamStart`, `StreamGap`,
`StreamExit`, `StreamProblem` from the server and `StreamStdinEof`, `StreamSignal`, `StreamResize` from the client, as
text. Binary frames from the server are output: byte 0 is the channel (1 stdout, 2 stderr), at most 64 KiB follow.
Binary frames from the client are stdin.

The stream begins with `start`, replays what is stored from the offsets on, goes live, and ends with `exit` and close
1000. Closing it ends nothing: open it again at the offsets that you have reached.

With `Accept: text/event-stream` it is Server-Sent Events: `start`, `output` (`StreamOutput`), `gap`, `exit` and
`problem`, without stdin, and the answer ends after `exit`. The `id` of an event is where you stand after it."""


PARAMETERS = [
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in StreamQuery.model_json_schema()["properties"].items()
]
PARAMETERS.append(
    {
        "name": LAST_EVENT_ID,
        "in": "header",
        "required": False,
        "schema": {"type": "string", "pattern": "^[0-9]{1,16}-[0-9]{1,16}$"},
        "description": "for Server-Sent Events: resume after this event; the offsets of the query are ignored",
    }
)


@router.get(
    PATH,
    operation_id="open_stream",
    summary="Live output, stdin, signals and terminal of an execution",
    description=_DESCRIPTION,
    status_code=101,
    response_class=Response,
    responses={
        101: {"description": "the WebSocket is open"},
        200: {
            "description": "Server-Sent Events, to a client that accepts them",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        },
        **problems(
            "upgrade_required",
            "invalid_request",
            "not_found",
            "conflict",
            "wrong_state",
            "range_not_satisfiable",
            "capacity_exceeded",
        ),
    },
    openapi_extra={"parameters": PARAMETERS},
)
async def open_stream_without_upgrade(request: Request, sandbox_id: str, execution_id: str) -> Response:
    if wants_events(request):
        return ExecutionEvents(request)
    raise UpgradeRequired(f"this path needs a WebSocket: send Upgrade: websocket, or Accept: {MEDIA_TYPE} for events")


class StreamEndpoint:
    """Speaks ASGI itself, as the framework's wrapper around `send` checks every frame again, which costs a third of the
    rate. An error before the upgrade becomes a problem body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        if (await receive())["type"] != "websocket.connect":
            return
        query = query_of(websocket)
        with admitted(websocket, query.offsets) as view:
            lease = None if query.stdin == "false" else view.execution.lease_stdin(take=query.stdin == "take")
            try:
                line = WebSocketEncoding(receive, send, request_id_of(websocket))
                await StreamSession(context_of(websocket), view, lease, line).run()
            finally:
                if lease is not None:
                    lease.release()


class NothingHere:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFound("stream at", scope["path"][:128])


routes = [WebSocketRoute(PATH, StreamEndpoint()), WebSocketRoute("/{path:path}", NothingHere())]
