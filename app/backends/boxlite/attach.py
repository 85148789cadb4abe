"""The WebSocket of one execution: the server's frames, within bounds, and the frames that may be sent.

The server silently drops what a slow reader does not take. So the reader here does nothing else, and waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from websockets.datastructures import Headers
from websockets.exceptions import WebSocketException
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import WebSocketURI
from websockets.utils import accept_key

from app.backends.boxlite.connection import SWITCHING, ConnectionBroken, HttpResponse, ResponseTooLarge
from app.backends.boxlite.connection_pool import ConnectionPool, NotConnected
from app.backends.boxlite.timeouts import ServerTimeouts
from app.backends.boxlite.websocket import IncrementalProtocol, WebSocket, WebSocketClosed
from app.core.models import Channel
from app.core.timeslices import TimeSlices

FRAME_BYTES = 256 * 1024  # the server's are 1 KiB, or 3 where it replaced every byte; one that lies is cut off
STDIN_BYTES = 64 * 1024  # above 4 MiB a frame kills the execution's stdin without an error
EXIT_LETTERS = 4096  # of the text of an exit frame, which has 32
CODES = range(-64, 256)  # minus a signal, -1, or what a program can return; anything else tells nothing
WARM_SECONDS = 0.005  # from the end of an attach, which somebody waits for, to a new connection in its place
CLOSING = 64  # sockets whose Close the server has not answered yet; who closes one more waits for it
REFUSAL_BYTES = 64 * 1024  # of the body of an answer that opens no socket
_UPGRADE = "upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n"
_NO_URI = WebSocketURI(False, "", 80, "/", "", None, None)  # for its library, which does not send the request
_HANDSHAKE = ("upgrade", "connection", "sec-websocket-accept")
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
    def __init__(self, connection: WebSocket) -> None:
        self._connection = connection

    def frames(self) -> AsyncIterator[Chunk | Ended]:
        """Yields frames until the exit frame. Unknown frames are skipped, as the official client does, and a server
        that sends many waits behind everybody else. Raises AttachCut."""
        return _Frames(self._connection)

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
        except WebSocketClosed as error:
            raise AttachCut(str(error)) from error


class _Frames:
    """Not a generator, which the loop would have to end by one more task for each attach."""

    def __init__(self, connection: WebSocket) -> None:
        self._connection = connection
        self._has_ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk | Ended:
        if self._has_ended:
            raise StopAsyncIteration
        while True:
            try:
                message = await self._connection.receive()
            except WebSocketClosed as error:
                raise AttachCut(str(error)) from error
            if isinstance(message, bytes):
                frame: Chunk | Ended | None = _chunk(message)
            else:
                frame = _ended(message)
                self._has_ended = frame is not None
            if frame is not None:
                return frame
            await TimeSlices.of_loop().next()


def _chunk(message: bytes) -> Chunk | None:
    channel = _CHANNELS.get(message[0]) if message else None
    return None if channel is None or len(message) == 1 else Chunk(channel, message[1:])


def _ended(message: str) -> Ended | None:
    if len(message) > EXIT_LETTERS:
        return None
    try:
        frame = json.loads(message)
    except (ValueError, RecursionError):
        return None
    if not isinstance(frame, dict) or frame.get("type") != "exit":
        return None
    code = frame.get("exit_code")
    return Ended(code if isinstance(code, int) and not isinstance(code, bool) and code in CODES else -1)


class Sockets:
    """WebSockets on the connections of a pool, beyond what it counts: each is there for a whole execution."""

    def __init__(self, pool: ConnectionPool, timeouts: ServerTimeouts, most_closing: int = CLOSING) -> None:
        self._pool, self._timeouts, self._most_closing = pool, timeouts, most_closing
        self._closing: set[asyncio.Future[None]] = set()
        self._spare: IncrementalProtocol | None = None

    def attached(self, path: str) -> Attachment:
        return Attachment(self, path)

    async def open(self, path: str) -> WebSocket:
        """Raises AttachRefused and AttachCut."""
        try:
            return await self._open(path)
        except (TimeoutError, NotConnected, ConnectionBroken, ResponseTooLarge, WebSocketException) as error:
            raise AttachCut(type(error).__name__) from error

    async def close(self, connection: WebSocket) -> None:
        """Waits for the server's part of it only where too many wait already."""
        closing = connection.close()
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        asyncio.get_running_loop().call_later(WARM_SECONDS, self._prepare)
        if len(self._closing) > self._most_closing:
            await asyncio.shield(closing)

    def _prepare(self) -> None:
        """What the next attach needs. Its protocol takes 40 to 60 µs."""
        self._pool.warm(self._timeouts.connect)
        self._spare = self._spare or _protocol()

    async def _open(self, path: str) -> WebSocket:
        """No redirect is followed, so the key goes to no other server."""
        until = asyncio.get_running_loop().time() + self._timeouts.opening
        protocol, self._spare = self._spare or _protocol(), None
        request = self._pool.request("GET", path, f"{_UPGRADE}sec-websocket-key: {protocol.key}\r\n")
        response, taken = await self._pool.exchange(
            request, REFUSAL_BYTES, self._timeouts.connect, until=until, again=False
        )
        if response.status != SWITCHING:
            self._pool.keep(taken)
            raise AttachRefused(response.status)
        if not _is_ordinary(response, protocol.key):
            try:
                protocol.process_response(Response(response.status, "", Headers(response.headers)))
            except WebSocketException:
                taken.close()
                raise
        connection = WebSocket(protocol, self._timeouts)
        taken.hand_over(connection, response.rest)
        return connection

    async def aclose(self) -> None:
        if self._closing:
            await asyncio.wait(tuple(self._closing))


class Attachment:
    """A block with an attached socket, which is closed at its end. Raises AttachRefused and AttachCut, also inside the
    block."""

    def __init__(self, sockets: Sockets, path: str) -> None:
        self._sockets, self._path = sockets, path

    async def __aenter__(self) -> Socket:
        self._connection = await self._sockets.open(self._path)
        return Socket(self._connection)

    async def __aexit__(self, *_: object) -> None:
        await self._sockets.close(self._connection)


def _protocol() -> IncrementalProtocol:
    """For one attach, as it has the key of the handshake."""
    return IncrementalProtocol(_NO_URI, state=State.OPEN, max_size=FRAME_BYTES, logger=_UNHEARD)


def _is_ordinary(response: HttpResponse, key: str) -> bool:
    """Whether an answer accepts the upgrade, has each header once and nothing more about the WebSocket. `websockets`
    judges all others. To judge this one, it would take a fifth of the attach."""
    found = [
        (name, value) for name, value in response.headers if name in _HANDSHAKE or name.startswith("sec-websocket-")
    ]
    values = dict(found)
    return (
        len(found) == len(values) == len(_HANDSHAKE)
        and values.get("upgrade", "").lower() == "websocket"
        and values.get("connection", "").lower() == "upgrade"
        and values.get("sec-websocket-accept") == accept_key(key)
    )
