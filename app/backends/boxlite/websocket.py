"""The client's end of a WebSocket: the frames by the protocol of `websockets`, on a transport of the event loop.

The library's own connection has a task for the keep-alive and one for each close. Without them an attach takes a third
less of the gateway's processor time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from app.backends.boxlite.timeouts import ServerTimeouts

FRAGMENTS = 4096  # of one message
FRAMES_QUEUED = 256  # while we are busy elsewhere: what stays in the server's hands for long is lost
_NO_UTF8, _TOO_MANY = 1007, 1008


class WebSocketClosed(Exception):
    """It is closed, or was cut."""


class WebSocket(asyncio.Protocol):
    """`protocol` is behind its handshake. One reader at a time."""

    def __init__(self, protocol: ClientProtocol, timeouts: ServerTimeouts) -> None:
        self._protocol, self._timeouts = protocol, timeouts
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._messages: deque[str | bytes] = deque()
        self._fragments: list[Frame] = []
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self._writable = True
        self._pong: list[bytes] = []  # not written yet, as the server takes nothing
        self._is_paused = False
        self._lost: asyncio.Future[None] = loop.create_future()
        self._timer = loop.call_later(self._timeouts.ping, self._ping)

    # --- for its owner

    async def receive(self) -> str | bytes:
        """The next message. Raises WebSocketClosed behind the last one."""
        while not self._messages:
            if self._lost.done() or self._protocol.state is not State.OPEN:
                raise WebSocketClosed("the server closed the WebSocket")
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._messages.popleft()
        if self._is_paused and len(self._messages) <= FRAMES_QUEUED // 4:
            self._is_paused = False
            if not self._transport.is_closing():  # uvloop's raises then
                self._transport.resume_reading()
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

    async def close(self) -> None:
        """Returns when the connection has ended. It is cut when the server does not do its part in time."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close()
            self._flush()
        try:
            async with asyncio.timeout(self._timeouts.closing):
                await asyncio.shield(self._lost)
        except TimeoutError:
            self._transport.abort()
            await asyncio.shield(self._lost)

    # --- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._take(event)
        if self._writable or self._protocol.state is not State.OPEN:
            self._flush()
        else:  # what is to be sent are answers to pings. The last is enough (RFC 6455, 5.5.3), and they take memory
            self._pong = self._protocol.data_to_send()[-1:] or self._pong
        if self._protocol.parser_exc is not None:
            self._transport.abort()  # else the other side would have to close it

    def eof_received(self) -> None:
        self._protocol.receive_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.receive_eof()
        self._timer.cancel()
        if not self._lost.done():
            self._lost.set_result(None)
        self._wake_reader()
        self.resume_writing()

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

    # --- frames

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self._timer.cancel()
            self._timer = self._loop.call_later(self._timeouts.ping, self._ping)
            return
        if frame.opcode is Opcode.CLOSE:
            self._wake_reader()
        if frame.opcode not in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            return
        self._fragments.append(frame)
        if len(self._fragments) > FRAGMENTS:
            self._refuse(_TOO_MANY)
        elif frame.fin:
            self._deliver()

    def _deliver(self) -> None:
        frames, self._fragments = self._fragments, []
        data = bytes(frames[0].data) if len(frames) == 1 else b"".join(frame.data for frame in frames)
        try:
            self._messages.append(data.decode() if frames[0].opcode is Opcode.TEXT else data)
        except UnicodeDecodeError:
            self._refuse(_NO_UTF8)
            return
        self._wake_reader()
        if len(self._messages) > FRAMES_QUEUED and not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def _refuse(self, code: int) -> None:
        self._fragments.clear()
        self._protocol.fail(code)
        self._flush()
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
            self._timer = self._loop.call_later(self._timeouts.pong, self._transport.abort)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
