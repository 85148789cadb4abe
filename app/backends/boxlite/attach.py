"""The WebSocket of one execution: the server's frames, within bounds, and the frames that may be sent.

The server silently drops what a slow reader does not take. So the reader here does nothing else, and waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from app.backends.boxlite.timeouts import ServerTimeouts
from app.core.models import Channel

FRAME_BYTES = 256 * 1024  # the server's are 1 KiB, or 3 where it replaced every byte; one that lies is cut off
FRAMES_QUEUED = 256  # while we are busy elsewhere: what stays in the server's hands for long is lost
STDIN_BYTES = 64 * 1024  # above 4 MiB a frame kills the execution's stdin without an error
PING_SECONDS, PONG_SECONDS = 15.0, 30.0
CODES = range(-64, 256)  # minus a signal, -1, or what a program can return; anything else tells nothing
_CHANNELS = {1: Channel.STDOUT, 2: Channel.STDERR}
_UNHEARD = logging.getLogger(__name__)  # the library writes whole requests into its log, the key among them
_UNHEARD.disabled = True


@dataclass(frozen=True, slots=True)
class Ended:
    """The server's exit frame: the code, minus a signal, or -1."""

    code: int


@dataclass(frozen=True, slots=True)
class Chunk:
    channel: Channel
    data: bytes


class AttachRefused(Exception):
    """The server answered with HTTP and did not open the socket."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"the BoxLite server refuses to attach with {status}")


class AttachCut(Exception):
    """There is no connection, or not any more."""


class Socket:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def frames(self) -> AsyncIterator[Chunk | Ended]:
        """Yields frames until the exit frame. Unknown frames are skipped, as the official client does. Raises
        AttachCut."""
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
        """Ends stdin. For a program that has ended, the server has already closed the socket. The frames before its
        Close are still read, so an error here is ignored."""
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
    return Ended(code if isinstance(code, int) and not isinstance(code, bool) and code in CODES else -1)


class _Connection(ClientConnection):
    def data_received(self, data: bytes) -> None:
        """Closes the connection after an invalid frame. The library would wait for the other side to close it."""
        super().data_received(data)
        if self.protocol.parser_exc is not None:
            self.transport.abort()


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception:
        """Follows no redirect, so that the key goes to no other server."""
        return exc


class Sockets:
    """`url` is the server's, http or https."""

    def __init__(self, url: str, headers: Mapping[str, str], timeouts: ServerTimeouts) -> None:
        self._url, self._headers, self._timeouts = "ws" + url.removeprefix("http"), dict(headers), timeouts
        self._closing: set[asyncio.Task[None]] = set()

    def target(self, path: str) -> str:
        return self._url + path

    @asynccontextmanager
    async def attached(self, path: str) -> AsyncIterator[Socket]:
        """Raises AttachRefused and AttachCut, also inside the block."""
        try:
            connection = await _Connect(
                self.target(path),
                additional_headers=self._headers,
                user_agent_header=None,
                proxy=None,
                compression=None,
                max_size=FRAME_BYTES,
                max_queue=FRAMES_QUEUED,
                open_timeout=self._timeouts.opening,
                close_timeout=self._timeouts.closing,
                ping_interval=PING_SECONDS,
                ping_timeout=PONG_SECONDS,
                logger=_UNHEARD,
                create_connection=_Connection,
            )
        except InvalidStatus as error:
            raise AttachRefused(error.response.status_code) from error
        except (OSError, TimeoutError, WebSocketException, ValueError) as error:
            raise AttachCut(type(error).__name__) from error
        try:
            yield Socket(connection)
        finally:
            closing = asyncio.get_running_loop().create_task(connection.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)

    async def aclose(self) -> None:
        if self._closing:
            await asyncio.wait(tuple(self._closing))
