"""The server's end of a WebSocket on a stream that HTTP is done with: whole control over frames and endings."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator

from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol, State

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
LARGEST_FRAME = 16 << 20  # more breaks the connection, without a Close


def accept_key(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest()).decode()


class WebSocket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._first = first
        self._protocol = Protocol(SERVER, state=State.OPEN, max_size=LARGEST_FRAME)
        self._writing = asyncio.Lock()

    async def send(self, message: str | bytes) -> None:
        async with self._writing:
            if self._protocol.state is not State.OPEN:
                raise ConnectionResetError
            if isinstance(message, str):
                self._protocol.send_text(message.encode())
            else:
                self._protocol.send_binary(message)
            self._flush()
            await self._writer.drain()

    async def ping(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._flush()
            await self._writer.drain()

    async def close(self, code: int | None = None, reason: str = "") -> None:
        """Sends Close; without a code unless one is given, so that the client sees 1005."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._flush()
            await self._writer.drain()

    def cut(self) -> None:
        """The end of a connection without Close."""
        self._writer.transport.abort()

    async def messages(self) -> AsyncIterator[str | bytes]:
        """What the client sends, until it closes or is gone. Pings are answered on the way."""
        parts: list[Frame] = []
        data = self._first
        while True:
            if data:
                self._protocol.receive_data(data)
                if self._protocol.parser_exc is not None:
                    self.cut()
                    return
                self._flush()
                for frame in self._protocol.events_received():
                    assert isinstance(frame, Frame)
                    if frame.opcode is Opcode.CLOSE:
                        return
                    if frame.opcode not in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
                        continue
                    parts.append(frame)
                    if frame.fin:
                        whole = b"".join(part.data for part in parts)
                        yield whole.decode(errors="replace") if parts[0].opcode is Opcode.TEXT else whole
                        parts = []
            try:
                data = await self._reader.read(1 << 16)
            except ConnectionError:
                return
            if not data:
                return

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data and not self._writer.is_closing():
                self._writer.write(data)
