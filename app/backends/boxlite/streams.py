"""What goes over the sockets of one execution: output out of them, stdin into them. Two ways: as the server passes them
on, or through the wrapper."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from app.backends.boxlite.attach import AttachCut, Ended, Socket
from app.backends.boxlite.output import OutputReader
from app.backends.boxlite.wrapped import (
    STDIN_BYTES,
    Begun,
    ChannelEnd,
    CommandRefused,
    Event,
    Piece,
    SpoiledOutput,
    StdinTaken,
    WrappedChannel,
    acknowledgement,
    stdin_piece,
)
from app.core.backend import Logs
from app.core.errors import PayloadTooLarge
from app.core.models import Channel, Command, Stdin
from app.core.timeslices import TimeSlices

BUSY_PIECES = 32  # with fewer a reader cannot have been 256 chunks behind for long: its end is not looked at again
_CTRL_D = b"\x04"  # end of file on a terminal whose program did not choose another character
STDIN_BUFFER = 1024 * 1024  # of bytes that wait for the program
_SAID_ON_STDOUT = (Begun, CommandRefused, StdinTaken)
_LETTERS = {Channel.STDOUT: "o", Channel.STDERR: "e"}


class CurrentSocket:
    """The socket of the moment. `ended`: of the execution, which lets go of whoever waits for one."""

    def __init__(self, ended: asyncio.Future[Any]) -> None:
        self._ended = ended
        self._socket: Socket | None = None
        self._connected = asyncio.Event()
        ended.add_done_callback(lambda _: self._connected.set())

    def begin(self, socket: Socket) -> None:
        self._socket = socket
        self._connected.set()

    def end(self) -> None:
        self._socket = None
        if not self._ended.done():
            self._connected.clear()

    def get(self) -> Socket | None:
        return self._socket

    async def say(self, what: Callable[[Socket], Awaitable[None]]) -> None:
        """On this one or, when there is none, the next. Returns at the end of the execution. Raises AttachCut."""
        saying = asyncio.get_running_loop().create_task(self._say(what))
        await asyncio.wait([saying, self._ended], return_when=asyncio.FIRST_COMPLETED)
        if not saying.done():
            saying.cancel()
        await asyncio.wait([saying])
        if not saying.cancelled():
            saying.result()

    async def _say(self, what: Callable[[Socket], Awaitable[None]]) -> None:
        await self._connected.wait()
        if self._socket is not None:
            await what(self._socket)


class ExecutionStreams(Protocol):
    refusal: str  # why the command did not begin, as the wrapper says; empty: it did, or nobody knows

    async def introduce(self, socket: Socket) -> None:
        """What a new socket must be told before others use it. Raises AttachCut."""

    async def take(self, socket: Socket) -> int:
        """Output into the logs, until the exit frame: its code. Raises AttachCut, SpoiledOutput."""

    @property
    def may_lack_the_end(self) -> bool:
        """After the exit frame: the server may have more."""

    async def write(self, data: bytes) -> bool: ...

    async def close_stdin(self) -> None: ...

    def end(self, *, destroyed: bool) -> str | None:
        """No more sockets. A sentence about what may be missing. `destroyed`: with its sandbox, so what was under way
        was not wanted any more."""


class PlainStreams:
    """As the server passes them on: text with holes, no back pressure."""

    def __init__(self, logs: Logs, quiet: float, current: CurrentSocket, stdin_limit: int, command: Command) -> None:
        self._intake, self._current = OutputReader(logs, quiet), current
        self._stdin_limit = self._stdin_left = stdin_limit
        self._terminal = command.tty is not None
        self._stdin_over = command.stdin is Stdin.NONE
        self._last_typed = b"\n"
        self._fed = self._in_doubt = False
        self.refusal = ""

    async def introduce(self, socket: Socket) -> None:
        if self._stdin_over and not self._terminal:
            await socket.end_stdin()
        self._fed = False

    async def take(self, socket: Socket) -> int:
        self._intake.begin_socket()
        try:
            return await self._intake.take(socket.frames())
        except AttachCut:
            self._in_doubt = self._in_doubt or self._fed
            raise

    @property
    def may_lack_the_end(self) -> bool:
        return self._intake.pieces >= BUSY_PIECES

    async def write(self, data: bytes) -> bool:
        if self._stdin_over:
            return False
        if len(data) > self._stdin_left:
            # The server takes in what the program does not read, without limit, and says nothing. Nothing smaller may
            # follow: it would go on behind a hole.
            self._stdin_left = 0
            raise PayloadTooLarge(self._stdin_limit, "all stdin of this execution", "write it to a file of the sandbox")
        self._stdin_left -= len(data)
        self._last_typed = data[-1:] or self._last_typed
        await self._say(lambda socket: socket.write(data))
        return True

    async def close_stdin(self) -> None:
        if not self._stdin_over:
            self._stdin_over = True
            await self._say(self._end_stdin)

    async def _end_stdin(self, socket: Socket) -> None:
        await (socket.write(self._typed_end()) if self._terminal else socket.end_stdin())

    def _typed_end(self) -> bytes:
        """A terminal cannot be closed for reading alone. Behind half a line Ctrl-D only ends the line."""
        return _CTRL_D if self._last_typed in (b"\n", b"\r", _CTRL_D) else _CTRL_D * 2

    async def _say(self, what: Callable[[Socket], Awaitable[None]]) -> None:
        async def say(socket: Socket) -> None:
            self._fed = True
            await what(socket)

        try:
            await self._current.say(say)
        except AttachCut:
            self._in_doubt = True

    def end(self, *, destroyed: bool) -> str | None:
        self._intake.end()
        if self._in_doubt:
            return "the connection to the BoxLite server broke while stdin was sent: some of it may be missing"
        return None


class ExactStreams:
    """Through the wrapper: every byte, and the program waits when it is ahead. What was under way when a socket broke
    is sent again on the next one, and told apart by its number."""

    def __init__(self, logs: Logs, current: CurrentSocket, ended: asyncio.Future[Any]) -> None:
        self._current, self._ended = current, ended
        self._logs = {Channel.STDOUT: logs.stdout, Channel.STDERR: logs.stderr}
        self._channels = {channel: WrappedChannel() for channel in Channel}
        self._waiting = bytearray()  # stdin that was not sent yet
        self._room = asyncio.Event()  # for more of it
        self._number = 0  # of the last piece of stdin
        self._under_way = b""
        self._open = True  # the program's stdin, as far as we know
        self._over = False  # its end was asked for
        self._begun = self._has_gap = False
        self.refusal = ""

    async def introduce(self, socket: Socket) -> None:
        for channel, reader in self._channels.items():
            if reader.pieces:
                await socket.write(acknowledgement(_LETTERS[channel], reader.pieces))
        if self._under_way:
            await socket.write(self._under_way)

    async def take(self, socket: Socket) -> int:
        for reader in self._channels.values():
            reader.begin_socket()
        slices = TimeSlices.of_loop()  # who writes in the box chooses how many lines there are in a frame
        async for frame in socket.frames():
            if isinstance(frame, Ended):
                return frame.code
            reader = self._channels[frame.channel]
            before = reader.pieces
            if slices.over:  # reading the next of the queued frames does not wait
                await slices.next()
            for event in reader.take(frame.data):
                await self._note(event, frame.channel)
                if slices.over:
                    await slices.next()
            if reader.pieces != before:
                await _try(socket, acknowledgement(_LETTERS[frame.channel], reader.pieces))
        raise AssertionError("frames ended without an exit")

    async def _note(self, event: Event, channel: Channel) -> None:
        """Raises SpoiledOutput."""
        if channel is Channel.STDERR and isinstance(event, _SAID_ON_STDOUT):
            raise SpoiledOutput
        match event:
            case Piece(data, has_gap):
                self._add_gap(channel, has_gap=has_gap)
                self._logs[channel].append(data)
            case ChannelEnd(has_gap):
                self._add_gap(channel, has_gap=has_gap)
            case StdinTaken(number, read):
                await self._stdin_taken(number, read=read)
            case CommandRefused(why):
                self.refusal = why
            case Begun():
                self._begun = True

    def _add_gap(self, channel: Channel, *, has_gap: bool) -> None:
        if has_gap:
            self._has_gap = True
            self._logs[channel].add_gap()

    @property
    def may_lack_the_end(self) -> bool:
        return self._begun and not all(reader.ended for reader in self._channels.values())

    # --- stdin: one piece is under way at a time, so what carries it never waits for the program

    async def write(self, data: bytes) -> bool:
        view = memoryview(data)
        while self._open and not self._over and not self._ended.done():
            self._room.clear()
            some = view[: STDIN_BUFFER - len(self._waiting)]
            self._waiting += some
            view = view[len(some) :]
            await self._send_next()
            if not view and len(self._waiting) < STDIN_BUFFER:
                return True
            await self._wait_for_room()
        return False

    async def _wait_for_room(self) -> None:
        room = asyncio.get_running_loop().create_task(self._room.wait())
        try:
            await asyncio.wait([room, self._ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()

    async def close_stdin(self) -> None:
        self._over = True
        await self._send_next()

    async def _send_next(self) -> None:
        """A piece, or the end behind all of them; when none is under way."""
        if self._under_way or not self._open or not (self._waiting or self._over):
            return
        piece = bytes(self._waiting[:STDIN_BYTES])
        del self._waiting[:STDIN_BYTES]
        self._open = bool(piece)
        self._number += 1
        self._under_way = stdin_piece(self._number, piece)
        if (socket := self._current.get()) is not None:  # else the next one is told
            await _try(socket, self._under_way)

    async def _stdin_taken(self, number: int, *, read: bool) -> None:
        if number > self._number:
            raise SpoiledOutput
        if number != self._number or not self._under_way:
            return  # said again on a new socket
        self._under_way = b""
        if not read:
            self._open = False
            self._waiting.clear()
        await self._send_next()
        self._room.set()

    def end(self, *, destroyed: bool) -> str | None:
        if self.may_lack_the_end and not destroyed:
            for channel, reader in self._channels.items():
                self._add_gap(channel, has_gap=not reader.ended)
        return "the BoxLite server has not kept all of its output" if self._has_gap else None


async def _try(socket: Socket, data: bytes) -> None:
    """On a socket that breaks just now nothing is lost: whoever reads it notices, and the next one is told."""
    try:
        await socket.write(data)
    except AttachCut:
        return
