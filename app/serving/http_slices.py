"""HTTP/1.1 whose input cannot hold the event loop.

Measured: the parser takes 0.2 µs for a chunk of one byte. 256 KiB of them take 9 ms, and libuv reads up to 32 times as
much from one connection before it looks at another (`uv__read`). So input of many pieces is parsed in slices that take
turns, and nothing is read from that connection meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from app.core.connections import NEWCOMERS, Connections
from app.core.timeslices import TimeSlices
from app.serving.http_upgrades import UpgradesIgnored
from app.serving.pacing import SliceSize, TokenBucket

LEAST_BYTES, MOST_BYTES, FEW_PIECES = 4 * 1024, 64 * 1024, 32  # of a slice
# Of a body that nobody reads any more. Most clients send all of it before they look at the answer.
DISCARDED = 64 * 1024 * 1024
CHUNK_COST = 1024
DISCARDED_TOGETHER, DISCARDED_EACH_SECOND = 512 * 1024 * 1024, 64 * 1024 * 1024


class ServerBounds:
    """What all connections of one server share."""

    def __init__(self) -> None:
        self.connections = Connections(NEWCOMERS)
        self.discards = TokenBucket(DISCARDED_EACH_SECOND, DISCARDED_TOGETHER)


_SERVERS: WeakKeyDictionary[ServerState, ServerBounds] = WeakKeyDictionary()


def bounds_of(server: ServerState) -> ServerBounds:
    """The bounds of a server, kept where all its connections find them, as uvicorn gives them nothing else in
    common."""
    if server not in _SERVERS:
        _SERVERS[server] = ServerBounds()
    return _SERVERS[server]


class HeldFlow(FlowControl):
    """Stops reading while the application has not taken what there is, or while slices wait to be parsed."""

    held = False

    def hold(self) -> None:
        self.held = True
        self._transport.pause_reading()

    def release(self) -> None:
        if self.held:
            self.held = False
            if not self.read_paused:
                self._transport.resume_reading()

    def resume_reading(self) -> None:
        if self.held:
            self.read_paused = False
        else:
            super().resume_reading()


class SlicedHttp(UpgradesIgnored):
    """Bodies that were answered before they were read are thrown away up to a bound for each request, and up to a rate
    for all connections together; then the connection is closed. Each chunk counts as 1 KiB beside its bytes."""

    flow: HeldFlow

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.bounds = bounds_of(self.server_state)
        self._slices = TimeSlices.of_loop()
        self._rest = bytearray()
        self._size = SliceSize(LEAST_BYTES, MOST_BYTES, FEW_PIECES)
        self._pieces = 0  # chunks and requests in this slice
        self._in_body = self._upgraded = False
        self._left = 0  # bytes of a body whose length was given: however many they are, they are one piece
        self._chunks_unread = self._discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.flow = HeldFlow(transport)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            return
        at, few = 0, True
        while few and at < len(data) and not self._over:
            size = max(self._size.bytes, self._left)
            few = self._take(data[at : at + size])
            at += size
        if at < len(data) and not self._over:
            self._rest += data[at:]
            self.flow.hold()
            self._slices.add(self._take_turn)

    @property
    def _over(self) -> bool:
        return self._upgraded or self.parser is None or self.transport.is_closing()

    def _take(self, data: bytes) -> bool:
        self._pieces = 0
        self.parse(data)
        return self._size.learn(self._pieces)

    def _take_turn(self) -> None:
        if self._over:
            self._rest.clear()
            return
        data = bytes(self._rest[: self._size.bytes])
        del self._rest[: self._size.bytes]
        if self._rest:
            self._slices.add(self._take_turn)
        else:
            self.flow.release()
        self._take(data)

    def parse(self, data: bytes) -> None:
        unread = self._in_body and self.cycle is not None and self.cycle.response_complete
        self._chunks_unread = 0
        super().data_received(data)
        if unread or self._chunks_unread:
            self._discard(len(data) + CHUNK_COST * self._chunks_unread)

    def handle_websocket_upgrade(self) -> None:
        """uvicorn would write the request anew and have it read a second time."""
        self._upgraded = True
        self.flow.release()
        self.connections.discard(self)
        websocket = cast(Any, self.ws_protocol_class)(self.config, self.server_state, self.app_state)
        websocket.connection_made(self.transport)
        websocket.begin(self.scope, self.url)
        self.transport.set_protocol(websocket)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._pieces += 1
        self._in_body = False
        self._left = self._discarded = 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_body = True
        self._left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._left = 0
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._pieces += 1
        self._left -= len(body)
        if self.cycle is not None and self.cycle.response_complete:
            self._chunks_unread += 1
        else:
            super().on_body(body)

    def _discard(self, cost: int) -> None:
        self._discarded += cost
        if self._discarded > DISCARDED or not self.bounds.discards.take(cost):
            self.transport.close()
