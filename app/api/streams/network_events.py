"""What a sandbox does with its network as Server-Sent Events: what is kept, then what comes, until its end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic_core import to_json
from starlette.requests import Request

from app.api.context import context_of, visitor_of
from app.api.schemas.views import network_event_body
from app.api.streams.events import LAST_EVENT_ID, EventResponse, EventWriter, Tell
from app.core.errors import InvalidRequest
from app.core.models import SandboxState
from app.core.network_log import LoggedEvent
from app.core.sandbox import WAIT_SECONDS, Sandbox

EVENT_ID = "[0-9]{1,16}"


def last_event_of(request: Request) -> int | None:
    """The sequence number of the last event that the client saw, if it names one. Raises InvalidRequest."""
    last = request.headers.get(LAST_EVENT_ID)
    if last is not None and not re.fullmatch(EVENT_ID, last):
        raise InvalidRequest.at(f"header/{LAST_EVENT_ID}", "must be the id of an event")
    return None if last is None else int(last)


class NetworkEvents(EventResponse):
    """`begin`: the sequence number of the first event."""

    def __init__(self, request: Request, sandbox: Sandbox, begin: int, wanted: Callable[[LoggedEvent], bool]) -> None:
        super().__init__(request)
        self._sandbox, self._begin, self._wanted = sandbox, begin, wanted

    @contextmanager
    def admit(self) -> Iterator[Tell]:
        with context_of(self._request).shares.streams.holding(visitor_of(self._request).client):

            async def tell(writer: EventWriter) -> None:
                await self._tell(writer, self._begin)

            yield tell

    async def _tell(self, writer: EventWriter, begin: int) -> None:
        while self._sandbox.state is SandboxState.CREATING:
            await self._sandbox.wait(WAIT_SECONDS)
        log, client = self._sandbox.network_log, visitor_of(self._request).client
        turns = context_of(self._request).shares.pieces
        if log is not None:
            async for found in log.follow(begin):
                for logged in found:
                    await turns.enter(client)
                    if logged.sequence > begin:
                        await _gap(writer, begin, logged.sequence)
                    if self._wanted(logged):
                        data = to_json(network_event_body(logged.event))
                        await writer.event(b"network", data, b"%d" % logged.sequence)
                    begin = logged.sequence + 1
            if log.total > begin:
                await _gap(writer, begin, log.total)
        total = 0 if log is None else log.total
        await writer.event(b"end", to_json({"total": total}), b"%d" % max(0, total - 1))


async def _gap(writer: EventWriter, begin: int, end: int) -> None:
    await writer.event(b"gap", to_json({"dropped": end - begin}), b"%d" % (end - 1))
