"""The stream of one execution: everything that can be refused is refused before the upgrade, then `Stream` runs it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response, WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send

from app.api.deps import edge_of, request_id_of
from app.api.documents import problems
from app.api.output import check_offset, check_readable
from app.api.problems import UpgradeRequired, field_errors
from app.api.streaming import Line, Stream
from app.core.errors import InvalidRequest, NotFound
from app.core.models import Channel

router = APIRouter(tags=["executions"])
PATH = "/sandboxes/{sandbox_id}/executions/{execution_id}/stream"

_DESCRIPTION = """A WebSocket. OpenAPI cannot describe one: the frames are the schemas `StreamStart`, `StreamGap`,
`StreamExit`, `StreamProblem` from the server and `StreamStdinEof`, `StreamSignal`, `StreamResize` from the client, as
text. Binary frames from the server are output: byte 0 is the channel (1 stdout, 2 stderr), at most 64 KiB follow.
Binary frames from the client are stdin.

The stream begins with `start`, replays what is stored from the offsets on, goes live, and ends with `exit` and close
1000. Closing it ends nothing: open it again at the offsets that you have reached."""


class StreamQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    stdout_offset: Annotated[int, Field(ge=0)] = 0
    stderr_offset: Annotated[int, Field(ge=0)] = 0
    stdin: Annotated[
        Literal["false", "true", "take"],
        Field(description="`true`: be the one that feeds stdin; `take`: also when another stream is, which is closed"),
    ] = "false"


PARAMETERS = [
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in StreamQuery.model_json_schema()["properties"].items()
]


@router.get(
    PATH,
    operation_id="open_stream",
    summary="Live output, stdin, signals and terminal of an execution",
    description=_DESCRIPTION,
    status_code=101,
    response_class=Response,
    responses={
        101: {"description": "the WebSocket is open"},
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
    raise UpgradeRequired("this path speaks WebSocket: send Upgrade: websocket")


class StreamEndpoint:
    """Speaks ASGI itself: the framework's wrapper around `send` checks every frame again, which costs a third of the
    rate. What it raises before the upgrade is answered as a problem body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        if (await receive())["type"] != "websocket.connect":
            return
        edge = edge_of(websocket)
        sandbox_id, execution_id = (scope["path_params"][name] for name in ("sandbox_id", "execution_id"))
        sandbox = edge.sandboxes.get(sandbox_id)
        execution = edge.sandboxes.execution(sandbox_id, execution_id)
        query = _query(websocket)
        check_readable(sandbox)
        offsets = {Channel.STDOUT: query.stdout_offset, Channel.STDERR: query.stderr_offset}
        for channel, offset in offsets.items():
            check_offset(execution.logs[channel], offset, channel)
        execution.enter_view(edge.sandboxes.capacity.viewers)
        try:
            grip = None if query.stdin == "false" else execution.grip_stdin(take=query.stdin == "take")
            try:
                line = Line(receive, send, request_id_of(websocket))
                await Stream(edge, sandbox.spec.runtime, execution, grip, line).run(offsets)
            finally:
                if grip is not None:
                    grip.release()
        finally:
            execution.leave_view()


def _query(websocket: WebSocket) -> StreamQuery:
    try:
        return StreamQuery.model_validate(dict(websocket.query_params))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequest(field_errors([{**f, "loc": ("query", *f["loc"])} for f in found])) from None


class NothingHere:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFound("stream at", scope["path"][:128])


routes = [WebSocketRoute(PATH, StreamEndpoint()), WebSocketRoute("/{path:path}", NothingHere())]
