"""WebSockets with bounds: on frames that cost the client nothing, on the time that input takes from others, and on
answers to pings that nobody reads.

Measured: a frame without content takes 2 to 4 µs, so one piece of 256 KiB that consists of them takes 100 to 155 ms.
"""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.frames import CloseCode, Frame, Opcode

from app.core.connections import ConnectionEntry
from app.core.timeslices import TimeSlices
from app.serving.pacing import SliceSize, TokenBucket
from app.serving.websocket import WebSocketConnection

# A client pings every few seconds, and has no reason for a frame without content.
SMALL_FRAMES_EACH_SECOND, SMALL_FRAMES_SAVED = 50, 500
FRAGMENTS = 1024  # of one message: 1 KiB each, as a message has 1 MiB at most
UNREAD_BYTES = 64 * 1024  # no ping is answered while so much waits for the client (RFC 6455, 5.5.3, allows that)
LEAST_BYTES, MOST_BYTES, FEW_FRAMES, AT_ONCE_BYTES = 2 * 1024, 16 * 1024, 32, 512
_CONTROL = frozenset({Opcode.PING, Opcode.PONG, Opcode.CLOSE})


class BoundedWebSocket(WebSocketConnection):
    """Closes with 1008 when a client sends more than 50 control frames and frames without content a second (500 of them
    at once), or a message in more than 1,024 fragments. Input is parsed in slices that take turns with those of others,
    and waits while the application has not taken the message before it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._slices = TimeSlices.of_loop()
        self._small = TokenBucket(SMALL_FRAMES_EACH_SECOND, SMALL_FRAMES_SAVED)
        self._rest = bytearray()
        self._size = SliceSize(LEAST_BYTES, MOST_BYTES, FEW_FRAMES)
        self._queued = False
        self._frames = self._fragments = 0

    # --- One connection among all

    @property
    def idle(self) -> bool:
        return False

    def give_up(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._entry: ConnectionEntry | None = self.app_state.get("connection")  # of the HTTP connection that it was
        if self._entry is not None:
            self._entry.connection = self

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._entry is not None:
            self._entry.leave()

    # --- Input

    def data_received(self, data: bytes) -> None:
        if self.is_input_refused:
            return
        if len(data) <= AT_ONCE_BYTES and not self._rest and not self.read_paused:
            super().data_received(data)
            return
        self._rest += data
        self.transport.pause_reading()
        self._go_on()

    def _go_on(self) -> None:
        if not self._queued and not self.read_paused:
            self._queued = True
            self._slices.add(self._parse_slice)

    @property
    def _over(self) -> bool:
        return self.is_input_refused or self.disconnected or self.transport.is_closing()

    def _parse_slice(self) -> None:
        self._queued = False
        few = True
        while few and self._rest and not self.read_paused and not self._over:
            data = bytes(self._rest[: self._size.bytes])
            del self._rest[: self._size.bytes]
            self._frames = 0
            super().data_received(data)
            few = self._size.learn(self._frames)
        if self._over:
            self._rest.clear()
        elif self._rest:
            self._go_on()
        elif not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> Any:
        """Lets the loop run between messages that came together. `websocket.connect` is our own message, so it
        waits for no slice."""
        if self.has_message and self.is_answered and self._slices.over:
            await self._slices.next()
        message = await super().receive()
        if self.read_paused and not self.has_message and not self._over:
            self.read_paused = False
            if self._rest:
                self._go_on()
            else:
                self.transport.resume_reading()
        return message

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self._rest:  # a close lets reading go on
            self._go_on()

    # --- Bounds

    def handle_events(self) -> None:
        reason = self._excess([event for event in self.conn.events if isinstance(event, Frame)])
        if reason is None:
            super().handle_events()
        else:
            self._refuse_input(CloseCode.POLICY_VIOLATION, reason)

    def _excess(self, frames: list[Frame]) -> str | None:
        self._frames += len(frames)
        for frame in frames:
            if frame.opcode is Opcode.CONT:
                self._fragments += 1
            elif frame.opcode not in _CONTROL:
                self._fragments = 1
            if self._fragments > FRAGMENTS:
                return f"a message may have at most {FRAGMENTS} fragments"
        small = sum(frame.opcode in _CONTROL or not frame.data for frame in frames)
        if small and not self._small.take(small):
            return f"at most {SMALL_FRAMES_EACH_SECOND} control frames and empty frames a second are allowed"
        return None

    def _refuse_input(self, code: int, reason: str) -> None:
        self.conn.events.clear()
        self.conn.data_to_send()  # pongs
        self.conn.fail(code, reason)
        self.close_for_input()

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > UNREAD_BYTES:
            self.conn.data_to_send()
        else:
            super().handle_ping()

    def handle_message(self, kind: Opcode, data: bytes) -> None:
        try:
            super().handle_message(kind, data)
        except UnicodeDecodeError:
            self._refuse_input(CloseCode.INVALID_DATA, "a text frame has to be UTF-8")
