"""The WebSocket of one execution: its frames as the server sends them, within bounds, and what we may send.

The server drops what a slow reader does not take, without a word. So whoever reads here does nothing else, and waits
for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from app.core.models import Channel

FRAME_BYTES = 256 * 1024  # the server's are 1 KiB, or 3 where it replaced every byte; one that lies is cut off
FRAMES_QUEUED = 256  # while we are busy elsewhere: what stays in the server's hands for long is lost
STDIN_BYTES = 64 * 1024  # above 4 MiB a frame kills the execution's stdin without an error
OPEN_SECONDS = 30.0
CLOSE_SECONDS = 5.0  # the server waits as long for our Close, and refuses another socket meanwhile
PING_SECONDS, PONG_SECONDS = 15.0, 30.0
_CHANNELS = {1: Channel.STDOUT, 2: Channel.STDERR}


@dataclass(frozen=True, slots=True)
class Ended:
    """The server's exit frame: the code, minus a signal, or -1."""

    code: int


@dataclass(frozen=True, slots=True)
class Chunk:
    channel: Channel
    data: bytes


class AttachRefused(Exception):
    """An HTTP answer in place of the socket."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"the BoxLite server refuses to attach with {status}")


class AttachCut(Exception):
    """No connection, or not any more."""


class Socket:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def frames(self) -> AsyncIterator[Chunk | Ended]:
        """Until the exit frame. Unknown frames are passed over, as the official client does. Raises AttachCut."""
        try:
            async for message in self._connection:
                frame = _chunk(message) if isinstance(message, bytes) else _ended(message)
                if frame is not None:
                    yield frame
                if isinstance(frame, Ended):
                    return
        except (ConnectionClosed, OSError) as error:
            raise AttachCut(str(error)) from error
        raise AttachCut("closed without an exit")

    async def write(self, data: bytes) -> None:
        """Raises AttachCut."""
        view = memoryview(data)
        while view:
            await self._send(bytes(view[:STDIN_BYTES]))
            view = view[STDIN_BYTES:]

    async def end_stdin(self) -> None:
        """Of a program that has ended, the server has closed the socket already: what lies before its Close is read
        all the same, and says more than the refusal of this."""
        with contextlib.suppress(AttachCut):
            await self._send('{"type":"stdin_eof"}')

    async def resize(self, rows: int, cols: int) -> None:
        with contextlib.suppress(AttachCut):  # as above
            await self._send(json.dumps({"type": "resize", "cols": cols, "rows": rows}))

    async def _send(self, message: str | bytes) -> None:
        try:
            await self._connection.send(message)
        except (ConnectionClosed, OSError) as error:
            raise AttachCut(str(error)) from error


def _chunk(message: bytes) -> Chunk | None:
    channel = _CHANNELS.get(message[0]) if message else None
    return None if channel is None or len(message) == 1 else Chunk(channel, message[1:])


def _ended(message: str) -> Ended | None:
    try:
        frame = json.loads(message)
    except (ValueError, RecursionError):
        return None
    if not isinstance(frame, dict) or frame.get("type") != "exit":
        return None
    code = frame.get("exit_code")
    return Ended(code if isinstance(code, int) and not isinstance(code, bool) else -1)


@asynccontextmanager
async def attached(url: str, path: str, headers: dict[str, str]) -> AsyncIterator[Socket]:
    """`url`: the server's, http or https. Raises AttachRefused, AttachCut; inside too."""
    target = "ws" + url.removeprefix("http") + path
    try:
        connection = await connect(
            target,
            additional_headers=headers,
            user_agent_header=None,
            proxy=None,
            compression=None,
            max_size=FRAME_BYTES,
            max_queue=FRAMES_QUEUED,
            open_timeout=OPEN_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
        )
    except InvalidStatus as error:
        raise AttachRefused(error.response.status_code) from error
    except (OSError, TimeoutError, WebSocketException, ValueError) as error:
        raise AttachCut(str(error) or type(error).__name__) from error
    try:
        yield Socket(connection)
    finally:
        closing = asyncio.get_running_loop().create_task(connection.close())
        await asyncio.shield(closing)
