"""The client's end of a WebSocket: the frames by the protocol of `websockets`, on a transport of the event loop.

The library's own connection has a task for the keep-alive and one for each close. Without them an attach takes a third
less of the gateway's processor time.

What comes is parsed a few frames at a time, in slices that take turns with those of others. A frame without content
takes 3 to 40 µs, so a read of 256 KiB that consists of them would hold everybody up for 0.4 to 5 s.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Generator
from typing import Any, cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State
from websockets.streams import StreamReader

from app.backends.boxlite.timeouts import ServerTimeouts
from app.core import timeslices
from app.core.timeslices import TimeSlices

FRAGMENTS = 4096  # of one message
# While we are busy elsewhere, as what stays in the server's hands for long is lost. Its frames have 1 KiB, or 3.
FRAMES_QUEUED, BYTES_QUEUED = 256, 1024 * 1024
FRAMES_AT_ONCE = 64  # parsed before anybody looks at the time: 0.2 to 0.5 ms
_BYTES_OF_ONE = {bytes: 1, str: 4}  # element of a message, at most
_CONTENT = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})
_NO_UTF8, _TOO_MANY = 1007, 1008


class WebSocketClosed(Exception):
    """It is closed, or was cut."""


class _FrameReader(StreamReader):
    """Tells the parser before each frame that there is nothing more, when it has had its number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.frames_left = 0

    def at_eof(self) -> Generator[None, None, bool]:
        while True:
            if self.eof and not self.buffer:
                return True
            if self.buffer and self.frames_left:
                self.frames_left -= 1
                return False
            yield


class IncrementalProtocol(ClientProtocol):
    """Parses a few frames at a time. What is behind them stays unread."""

    reader: _FrameReader

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.reader = _FrameReader()
        self.parser = self.parse()  # the one that there is waits for bytes of another reader
        next(self.parser)

    @property
    def unread(self) -> bool:
        return not self.reader.frames_left and bool(self.reader.buffer)

    def keep(self, data: bytes) -> None:
        """Adds to what is unread."""
        self.reader.feed_data(data)
        self.reader.frames_left = 0

    def parse_some(self, data: bytes = b"") -> list[Event]:
        self.reader.frames_left = FRAMES_AT_ONCE
        self.receive_data(data)
        return self.events_received()


class WebSocket(asyncio.Protocol):
    """`protocol` is behind its handshake. One reader at a time."""

    def __init__(self, protocol: IncrementalProtocol, timeouts: ServerTimeouts) -> None:
        self._protocol, self._timeouts = protocol, timeouts
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._slices = TimeSlices.of_loop()
        self._is_waiting = False  # for a slice
        self._messages: deque[str | bytes] = deque()
        self._message_bytes = 0
        self._is_full = self._is_paused = self._is_cut = False
        self._fragments: list[Frame] = []
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self._writable = True
        self._pong: list[bytes] = []  # not written yet, as the server takes nothing
        self._lost: asyncio.Future[None] = loop.create_future()
        self._has_asked = False  # whether the server is there
        self._timer = loop.call_later(self._timeouts.ping, self._ping)

    # --- for its owner

    async def receive(self) -> str | bytes:
        """The next message. Raises WebSocketClosed behind the last one."""
        while not self._messages:
            if self._protocol.state is not State.OPEN:
                raise WebSocketClosed("the server closed the WebSocket")
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._messages.popleft()
        self._message_bytes -= len(message) * _BYTES_OF_ONE[type(message)]
        if self._is_full and len(self._messages) <= FRAMES_QUEUED // 4 and self._message_bytes <= BYTES_QUEUED // 4:
            self._is_full = False
            self._go_on()
        return message

    async def send(self, message: str | bytes) -> None:
        """Returns when the transport has taken it. Raises WebSocketClosed."""
        if self._protocol.state is not State.OPEN or self._transport.is_closing():
            raise WebSocketClosed("the WebSocket is closed")
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush()
        if not self._writable:
            waiter = self._loop.create_future()
            self._writers.append(waiter)
            try:
                await waiter
            finally:
                self._writers.remove(waiter)
            if self._lost.done():
                raise WebSocketClosed("the connection broke")

    def close(self) -> asyncio.Future[None]:
        """Returns what is done when the connection has ended, and must not be cancelled. The connection is cut when the
        server does not do its part in time."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close()
            self._flush()
        if not self._lost.done():
            self._has_asked = False  # a pong counts no more
            self._timer.cancel()
            self._timer = self._loop.call_later(self._timeouts.closing, self._transport.abort)
        return self._lost

    # --- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._is_waiting or self._is_full:
            self._protocol.keep(data)
            return
        self._parse(data)
        if self._is_full or self._protocol.unread:
            self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Senders are told at once, and the reader behind all that came."""
        self._timer.cancel()
        self._has_asked = False
        if not self._lost.done():
            self._lost.set_result(None)
        self.resume_writing()
        self._go_on()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        pong, self._pong = self._pong, []
        if pong and not self._transport.is_closing():
            self._transport.writelines(pong)
        for waiter in self._writers:
            if not waiter.done():
                waiter.set_result(None)

    # --- what came

    def _go_on(self) -> None:
        """Parses what is unread, or else reads on, unless the reader is behind."""
        if self._is_waiting:
            return
        if self._is_full:
            self._pause()
        elif self._protocol.unread:
            self._pause()
            self._is_waiting = True
            self._slices.add(self._parse_slice)
        elif self._lost.done():
            self._protocol.receive_eof()
            self._wake_reader()
        elif self._is_paused and not self._transport.is_closing():  # uvloop's raises then
            self._is_paused = False
            self._transport.resume_reading()

    def _pause(self) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def _parse_slice(self) -> None:
        self._is_waiting = False
        until = time.thread_time() + timeslices.SECONDS
        while self._protocol.unread and not self._is_full:
            self._parse()
            if time.thread_time() >= until:
                break
        self._go_on()

    def _parse(self, data: bytes = b"") -> None:
        for event in self._protocol.parse_some(data):
            if isinstance(event, Frame):
                self._take(event)
        if self._writable or self._protocol.state is not State.OPEN:
            self._flush()
        else:  # what is to be sent are answers to pings. The last is enough (RFC 6455, 5.5.3), and they take memory
            self._pong = self._protocol.data_to_send()[-1:] or self._pong
        if self._protocol.parser_exc is not None:
            self._cut()

    # --- frames

    def _take(self, frame: Frame) -> None:
        if self._is_cut:
            return
        if frame.opcode not in _CONTENT:
            self._take_control(frame)
            return
        self._fragments.append(frame)
        if len(self._fragments) > FRAGMENTS:
            self._refuse(_TOO_MANY)
        elif frame.fin:
            self._deliver()

    def _take_control(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG and self._has_asked:  # else each would cost a timer
            self._has_asked = False
            self._timer.cancel()
            self._timer = self._loop.call_later(self._timeouts.ping, self._ping)
        elif frame.opcode is Opcode.CLOSE:
            self._wake_reader()

    def _deliver(self) -> None:
        frames, self._fragments = self._fragments, []
        data = bytes(frames[0].data) if len(frames) == 1 else b"".join(frame.data for frame in frames)
        try:
            message = data.decode() if frames[0].opcode is Opcode.TEXT else data
        except UnicodeDecodeError:
            self._refuse(_NO_UTF8)
            return
        self._messages.append(message)
        self._message_bytes += len(message) * _BYTES_OF_ONE[type(message)]
        if self._message_bytes > BYTES_QUEUED or len(self._messages) > FRAMES_QUEUED:
            self._is_full = True
        self._wake_reader()

    def _refuse(self, code: int) -> None:
        self._fragments.clear()
        self._protocol.fail(code)
        self._flush()
        self._cut()

    def _cut(self) -> None:
        """Else the other side would have to close the connection. The rest of what came counts no more."""
        self._is_cut = True
        self._transport.abort()

    def _flush(self) -> None:
        """An empty piece is the end of what we send: the server closes, or is cut."""
        for data in self._protocol.data_to_send():
            if self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()

    def _ping(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._flush()
            self._has_asked = True
            self._timer = self._loop.call_later(self._timeouts.pong, self._transport.abort)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
