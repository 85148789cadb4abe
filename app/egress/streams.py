"""One side of an HTTP connection: a socket, or TLS over one (see `tls_stream`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol

from app.egress.splice import KeptBytes
from app.egress.turns import SandboxTurns

LARGE, SMALL = 64 * 1024, 16 * 1024  # bytes that are received at once


class ByteStream(Protocol):
    """One task reads and one writes at a time. All methods raise OSError when the stream has failed."""

    async def receive(self, most: int) -> bytes:
        """Returns b"" at the end."""

    async def send(self, data: bytes) -> None: ...

    async def end(self) -> None:
        """Nothing more will be sent. The other side can go on."""

    def is_quiet(self) -> bool:
        """Whether the other side has said nothing that was not received, and has not ended. What it has said is lost:
        for the moment before a request."""


class SocketStream:
    """`count` gets the bytes that are received, and may raise."""

    def __init__(self, turns: SandboxTurns, connection: socket.socket, count: Callable[[int], None]) -> None:
        self._turns, self._connection, self._count = turns, connection, count

    async def receive(self, most: int) -> bytes:
        data = await self._turns.receive(self._connection, most)
        self._count(len(data))
        return data

    async def send(self, data: bytes) -> None:
        await self._turns.send(self._connection, data)

    async def end(self) -> None:
        self._connection.shutdown(socket.SHUT_WR)

    def is_quiet(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self._connection.recv(1, socket.MSG_PEEK)
            return False
        return True


async def send_counted(target: ByteStream, data: bytes, kept: KeptBytes) -> None:
    """Sends, and counts the bytes until the other side has taken them. Raises OSError."""
    kept.add(len(data))
    try:
        await target.send(data)
    finally:
        kept.add(-len(data))


async def relay(turns: SandboxTurns, kept: KeptBytes, one: ByteStream, other: ByteStream) -> None:
    """Passes bytes in both directions until both have ended. Raises OSError, and what the streams' `count` raises."""
    parts = [asyncio.ensure_future(_pass_on(turns, kept, *pair)) for pair in ((one, other), (other, one))]
    try:
        await asyncio.gather(*parts)
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)


async def _pass_on(turns: SandboxTurns, kept: KeptBytes, source: ByteStream, target: ByteStream) -> None:
    while data := await source.receive(SMALL if kept.is_much else LARGE):
        await send_counted(target, data, kept)
        if turns.over:
            await turns.next()
    await target.end()
