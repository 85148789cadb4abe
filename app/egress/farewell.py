"""The last bytes on a connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from app.egress.turns import SandboxTurns

PIECES = 16
_PIECE = 16 * 1024


async def say_goodbye(turns: SandboxTurns, connection: socket.socket, data: bytes, seconds: float) -> None:
    """Sends the last bytes, and waits until the client has ended, so that no reset overtakes them."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            await turns.send(connection, data)
            connection.shutdown(socket.SHUT_WR)
            for _ in range(PIECES):
                if not await turns.receive(connection, _PIECE):
                    break
