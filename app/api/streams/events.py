"""Server-Sent Events: the encoding, and an answer that ends when its events end or its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.context import context_of, request_id_of
from app.api.http.disconnect import ClientDisconnected, until_disconnect
from app.api.streams.frames import problem_frame
from app.core.backend import settle

MEDIA_TYPE = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"


def wants_events(request: Request) -> bool:
    kinds = (kind.replace(" ", "").lower().split(";") for kind in request.headers.get("accept", "").split(","))
    return any(kind == MEDIA_TYPE and "q=0" not in parameters for kind, *parameters in kinds)


class EventWriter:
    """Writes events. Each call returns when the connection's buffer has room again."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._id = b""

    async def open(self, origin: str | None) -> None:
        """A listed page of another origin may also read the events. Otherwise its EventSource would get nothing."""
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"x-accel-buffering", b"no")]
        if origin is not None:
            headers += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, kind: bytes, data: bytes, event_id: bytes | None = None) -> None:
        """`event_id` is the position of the client after the event; None: the one of the event before."""
        self._id = self._id if event_id is None else b"id: %b\n" % event_id
        await self._write(b"event: %b\n%bdata: %b\n\n" % (kind, self._id, data))

    async def beat(self, seconds: float) -> None:
        """Sends a comment now and then, so that no proxy takes silence for a dead connection."""
        with contextlib.suppress(ClientDisconnected):  # who waits for the client notices it too, and ends the stream
            while True:
                await asyncio.sleep(seconds)
                await self._write(b":\n\n")

    async def close(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


Tell = Callable[[EventWriter], Awaitable[None]]


class EventResponse(Response, ABC):
    """Errors before the answer began are raised. A later error becomes an event `problem`, and the stream ends."""

    media_type = MEDIA_TYPE

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._request = request

    @abstractmethod
    def admit(self) -> AbstractContextManager[Tell]:
        """A block in which the client is served. Gives what writes all the events. Raises what refuses the client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.admit() as tell:
            if scope["method"] == "HEAD":
                return await Response(media_type=MEDIA_TYPE)(scope, receive, send)
            with contextlib.suppress(ClientDisconnected):  # hanging up is how a client leaves
                await until_disconnect(receive, self._serve(tell, EventWriter(send)))
        return None

    async def _serve(self, tell: Tell, writer: EventWriter) -> None:
        context, request_id = context_of(self._request), request_id_of(self._request)
        await writer.open(self._request.headers.get("origin"))
        beating = asyncio.get_running_loop().create_task(writer.beat(context.timeouts.silence))
        try:
            await tell(writer)
        except ClientDisconnected:
            raise
        except Exception as error:  # whatever it is, the client is told that the stream cannot go on
            context.journal.failure(request_id=request_id, error=error)
            await writer.event(b"problem", problem_frame(error, request_id).encode())
        finally:
            beating.cancel()
            await settle(beating)
        await writer.close()
