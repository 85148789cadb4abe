"""A view of an execution as Server-Sent Events, for clients that cannot speak WebSocket: the same objects, and output
as base64."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from app.api.streams.events import LAST_EVENT_ID, EventResponse, EventWriter, Tell
from app.api.streams.frames import exit_frame, gap_frame, start_frame
from app.api.streams.viewing import Offsets, View, admitted, query_of
from app.core.errors import InvalidRequest
from app.core.executions import Execution
from app.core.follow import OutputGap, OutputPiece
from app.core.models import Channel

_EVENT_ID = re.compile(r"([0-9]{1,16})-([0-9]{1,16})")


class ExecutionEvents(EventResponse):
    @contextmanager
    def admit(self) -> Iterator[Tell]:
        with admitted(self._request, _offsets(self._request)) as view:

            async def tell(writer: EventWriter) -> None:
                await view.send_to(EventEncoding(writer, view))

            yield tell


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


class EventEncoding:
    """The encoding as events. `id` is the position of the client after the event."""

    def __init__(self, writer: EventWriter, view: View) -> None:
        self._writer = writer
        self._at = dict(view.offsets)

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

    async def _event(self, kind: bytes, data: bytes) -> None:
        at = b"%d-%d" % (self._at[Channel.STDOUT], self._at[Channel.STDERR])
        await self._writer.event(kind, data, at)
