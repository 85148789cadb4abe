"""A view as Server-Sent Events, for clients that cannot speak WebSocket: the same objects, and output as base64."""

from __future__ import annotations

import asyncio
import contextlib
import re
from base64 import b64encode

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.context import context_of, request_id_of
from app.api.http.disconnect import ClientDisconnected, until_disconnect
from app.api.streams.frames import exit_frame, gap_frame, problem_frame, start_frame
from app.api.streams.viewing import Offsets, View, admitted, query_of
from app.core.backend import settle
from app.core.errors import InvalidRequest
from app.core.executions import Execution
from app.core.follow import OutputGap, OutputPiece
from app.core.models import Channel

MEDIA_TYPE = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"
_EVENT_ID = re.compile(r"([0-9]{1,16})-([0-9]{1,16})")


def wants_events(request: Request) -> bool:
    kinds = (kind.replace(" ", "").lower().split(";") for kind in request.headers.get("accept", "").split(","))
    return any(kind == MEDIA_TYPE and "q=0" not in parameters for kind, *parameters in kinds)


class EventStream(Response):
    """Errors before the answer began are raised. A later error becomes an event `problem`, and the stream ends."""

    media_type = MEDIA_TYPE

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with admitted(self._request, _offsets(self._request)) as view:
            if scope["method"] == "HEAD":
                return await Response(media_type=MEDIA_TYPE)(scope, receive, send)
            events = Events(send, view.offsets, request_id_of(self._request))
            with contextlib.suppress(ClientDisconnected):  # hanging up is how a viewer leaves
                await until_disconnect(receive, self._tell(view, events))
        return None

    async def _tell(self, view: View, events: Events) -> None:
        context = context_of(self._request)
        await events.open(self._request.headers.get("origin"))
        beating = asyncio.get_running_loop().create_task(events.beat(context.timeouts.silence))
        try:
            await view.send_to(events)
        except ClientDisconnected:
            raise
        except Exception as error:  # whatever it is, the client is told that the stream cannot go on
            context.journal.failure(request_id=events.request_id, error=error)
            await events.problem(error)
        finally:
            beating.cancel()
            await settle(beating)
        await events.close()


def _offsets(request: Request) -> Offsets:
    """Returns where to begin: behind the last event that the client saw, or at the offsets of the query. Raises
    InvalidRequest."""
    query = query_of(request)
    if query.stdin != "false":
        raise InvalidRequest.at("query/stdin", "events carry no stdin; use PUT …/stdin")
    last = request.headers.get(LAST_EVENT_ID)
    if last is None:
        return query.offsets
    found = _EVENT_ID.fullmatch(last)
    if found is None:
        raise InvalidRequest.at(f"header/{LAST_EVENT_ID}", "must be <stdout offset>-<stderr offset>")
    return {Channel.STDOUT: int(found[1]), Channel.STDERR: int(found[2])}


class Events:
    """The encoding as events. `id` is the position of the client after the event."""

    def __init__(self, send: Send, offsets: Offsets, request_id: str) -> None:
        self._send = send
        self._at = dict(offsets)
        self.request_id = request_id

    async def open(self, origin: str | None) -> None:
        """A listed page of another origin may also read the events. Otherwise its EventSource would get nothing."""
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"x-accel-buffering", b"no")]
        if origin is not None:
            headers += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def close(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def beat(self, seconds: float) -> None:
        """Sends a comment now and then, so that no proxy takes the silence of a program for a dead connection."""
        with contextlib.suppress(ClientDisconnected):  # who waits for the client notices it too, and ends the stream
            while True:
                await asyncio.sleep(seconds)
                await self._write(b":\n\n")

    async def start(self, execution: Execution, offsets: Offsets) -> None:
        await self._event(b"start", start_frame(execution, offsets).encode())

    async def output(self, item: OutputPiece) -> None:
        self._at[item.channel] = item.offset + len(item.data)
        data = b'{"channel":"%b","offset":%d,"base64":"%b"}'
        await self._event(b"output", data % (item.channel.encode(), item.offset, b64encode(item.data)))

    async def gap(self, gap: OutputGap) -> None:
        self._at[gap.channel] = gap.begin if gap.end is None else gap.end
        await self._event(b"gap", gap_frame(gap).encode())

    async def exit(self, execution: Execution) -> None:
        await self._event(b"exit", exit_frame(execution).encode())

    async def problem(self, error: Exception) -> None:
        await self._event(b"problem", problem_frame(error, self.request_id).encode())

    async def _event(self, kind: bytes, data: bytes) -> None:
        at = self._at[Channel.STDOUT], self._at[Channel.STDERR]
        await self._write(b"event: %b\nid: %d-%d\ndata: %b\n\n" % (kind, *at, data))

    async def _write(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
