"""The stream of one execution. After a broken connection it resumes at the same byte. The end is checked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from app.client.errors import ClientError, ServiceProblem, ServiceUnreachable, problem_of, reason_of
from app.client.stdin import Outgoing

CHANNELS = {1: "stdout", 2: "stderr"}
BACKOFF_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6)
CUT = (ConnectionResetError, BrokenPipeError, TimeoutError)  # somebody was there
STEADY_SECONDS = 10  # a connection that lasted longer is not one more try of the same cut
OPEN_SECONDS = 10
LEAVE_SECONDS = 1
TAKEN_OVER = 4001
# A peer that vanished without a word: asked after 20 s of silence, given up after 20 more. Not the library's own
# pings: a service that waits for the program to read its stdin reads no frames meanwhile, and answers none.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))


class OutputDamaged(ClientError):
    """The received bytes are not those that the service says it sent."""


class StreamCut(ClientError):
    """The connection was cut and could not be made again."""


@dataclass(frozen=True, slots=True)
class Output:
    channel: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes from `begin` up to, not including, `end` are no longer stored. With `end` None the runtime lost output
    before it was counted. Nobody knows how much, and the count goes on at `begin`."""

    channel: str
    begin: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Exited:
    exit_code: int
    exit: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StdinTakenOver:
    """Another client feeds stdin from now on. What is written here is dropped."""


Event = Output | Gap | StdinTakenOver | Exited


class Received:
    """One channel: how many bytes were received, and the digest while nothing is missing."""

    def __init__(self) -> None:
        self.offset = 0
        self.whole = True
        self._digest = hashlib.sha256()

    def take(self, data: bytes) -> None:
        self.offset += len(data)
        self._digest.update(data)

    def skip(self, end: int) -> None:
        self.offset = end
        self.whole = False

    def check(self, channel: str, sums: Mapping[str, Any]) -> None:
        """Raises OutputDamaged."""
        total, expected = sums.get("bytes"), sums.get("sha256")
        if total is not None and total != self.offset:
            raise OutputDamaged(f"{channel} is incomplete: {self.offset} of {total} bytes were received")
        if self.whole and expected is not None and expected != self._digest.hexdigest():
            raise OutputDamaged(f"{channel} was damaged: the digest of its {self.offset} bytes is wrong")


@dataclass(frozen=True, slots=True)
class Connector:
    """The address and the headers of the stream."""

    url: str
    path: str
    headers: Mapping[str, str]
    direct: bool

    async def __call__(self, query: str) -> ClientConnection:
        connection = await connect(
            "ws" + self.url.removeprefix("http") + self.path + query,
            additional_headers=self.headers,
            user_agent_header=None,
            proxy=None if self.direct else True,
            compression=None,
            open_timeout=OPEN_SECONDS,
            close_timeout=1,
            ping_interval=None,
        )
        channel = connection.transport.get_extra_info("socket")
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            channel.setsockopt(socket.IPPROTO_TCP, option, value)
        return connection


class Stream:
    """Use it as `async with client.stream(...) as stream`, then `async for event in stream`. The last event is
    `Exited`. With `stdin` it holds the execution's stdin. Call `write` and `end_input` from any task, also while the
    connection is broken.
    """

    def __init__(
        self,
        dial: Connector,
        farewell: Callable[[ClientConnection], None],
        *,
        stdin: bool = False,
        take: bool = False,
        offsets: Mapping[str, int] | None = None,
    ) -> None:
        self.received = {name: Received() for name in CHANNELS.values()}
        for name, offset in (offsets or {}).items():
            self.received[name].skip(offset)
        self._dial = dial
        self._farewell = farewell  # says goodbye in the background: nobody has to wait for it
        self._stdin = Outgoing()
        self._claim = ("take" if take else "true") if stdin else "false"
        self._left = False
        self._taken_over = False  # and nobody was told yet
        self._connection: ClientConnection | None = None
        self._pump: asyncio.Task[None] | None = None
        self._problem: ServiceProblem | None = None  # of the last frame: the close that follows makes it final
        self._reached = False
        self._size: dict[str, int] | None = None  # of the terminal, once it is not what it was at the start

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_sending()
        if self._connection is not None:
            self._farewell(self._connection)

    async def write(self, data: bytes) -> None:
        """Feeds stdin. Waits while many bytes are under way. When the program reads no more, the bytes are dropped."""
        await self._stdin.put(data)

    def end_input(self) -> None:
        self._stdin.finish()

    async def leave(self) -> None:
        """Ends the iteration without an exit, when what was written is sent. The execution runs on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._stdin.taken()
        self._left = True
        if self._connection is not None:
            await self._connection.close()

    async def resize(self, rows: int, cols: int) -> None:
        """Changes the size of the terminal. The size is sent again after a broken connection."""
        self._size = {"rows": rows, "cols": cols}
        if self._connection is not None:
            await self._tell_size(self._connection)

    async def _tell_size(self, connection: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):  # its reader sees it too, and begins again
            await connection.send(json.dumps({"type": "resize", **(self._size or {})}))

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Raises ServiceUnreachable, ServiceProblem, StreamCut, OutputDamaged."""
        clock, tries = asyncio.get_running_loop().time, 0
        while True:
            reason, began = "closed without an exit frame", clock()
            try:
                self._connection = connection = await self._open()
                self._reached = True
                async for message in connection:
                    event = self._understand(message)
                    if event is not None:
                        tries = 0
                        yield event
                    if isinstance(event, Exited):
                        return
            except ConnectionClosed as error:
                reason = str(error)
            except (OSError, TimeoutError, InvalidMessage) as error:
                reason = reason_of(error)
                self._check_reached(error, reason)
            except ServiceProblem as problem:
                if not isinstance(problem.status, int) or problem.status < 500:
                    raise
                reason = str(problem)
            if self._left:
                return
            await self._close()
            if self._taken_over:
                self._taken_over = False
                yield StdinTakenOver()
            if clock() - began > STEADY_SECONDS:
                tries = 0
            if tries == len(BACKOFF_SECONDS):
                raise StreamCut(f"the stream was cut and could not be resumed: {reason}")
            await asyncio.sleep(BACKOFF_SECONDS[tries])
            tries += 1

    def _check_reached(self, error: Exception, reason: str) -> None:
        """Raises ServiceUnreachable where the service was never there, as another attempt cannot help."""
        if not self._reached and isinstance(error, OSError) and not isinstance(error, CUT):
            raise ServiceUnreachable(self._dial.url, reason) from error

    async def _open(self) -> ClientConnection:
        self._problem = None
        out, err = self.received["stdout"].offset, self.received["stderr"].offset
        while True:
            try:
                return await self._dial(f"?stdout_offset={out}&stderr_offset={err}&stdin={self._claim}")
            except InvalidStatus as error:
                answer = error.response
                problem = problem_of(answer.status_code, answer.reason_phrase, bytes(answer.body or b""))
                if self._claim == "false" or problem.slug != "wrong_state":
                    raise problem from error
                self._let_go_of_stdin()  # it ended, or its stdin did, before we came
            except InvalidMessage:
                raise
            except InvalidHandshake as error:
                raise ClientError(f"{self._dial.url} does not speak WebSocket: {error}") from error

    def _understand(self, message: str | bytes) -> Event | None:
        self._problem = None
        if isinstance(message, bytes):
            channel, data = CHANNELS.get(message[0] if message else 0), message[1:]
            if channel is None:
                return None  # a channel of a later version
            self.received[channel].take(data)
            return Output(channel, data)
        try:
            return self._obey(json.loads(message))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClientError(f"a frame of the stream has an unknown form: {message[:100]}") from error

    def _obey(self, frame: Mapping[str, Any]) -> Event | None:
        match frame.get("type"):
            case "start":
                self._begin(frame)
            case "gap":
                if frame["to"] is not None:
                    self.received[frame["channel"]].skip(frame["to"])
                return Gap(frame["channel"], frame["from"], frame["to"])
            case "problem":
                # What we send can only come too late, stdin and sizes alike; the close that may follow says the rest.
                self._problem = ServiceProblem(frame["problem"])
                if self._problem.slug == "wrong_state":
                    self._let_go_of_stdin()
            case "exit":
                for name, received in self.received.items():
                    received.check(name, frame.get(name) or {})
                return Exited(int(frame["exit_code"]), frame["exit"])
        return None

    def _begin(self, frame: Mapping[str, Any]) -> None:
        for name, received in self.received.items():
            if frame.get(f"{name}_offset", received.offset) != received.offset:
                raise OutputDamaged(f"{name} should continue at byte {received.offset}: {frame[f'{name}_offset']} came")
        if self._connection is None:
            return
        with_stdin = self._claim != "false" and not self._stdin.over
        if with_stdin:
            self._stdin.rewind(int(frame.get("stdin_bytes", 0)))
            self._claim = "take"  # after a cut the service may still believe in the old holder: ourselves
        self._pump = asyncio.create_task(self._send(self._connection, with_stdin))

    async def _send(self, connection: ClientConnection, with_stdin: bool) -> None:
        try:
            if self._size is not None:
                await self._tell_size(connection)
            if not with_stdin:
                return
            while (piece := await self._stdin.take()) is not None:
                await connection.send(piece)
            if not self._stdin.over:
                await connection.send('{"type":"stdin_eof"}')
        except ConnectionClosed:
            return  # the reader of the same connection sees it too, and begins again

    def _let_go_of_stdin(self) -> None:
        self._claim = "false"
        self._stdin.discard()

    async def _stop_sending(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
            self._pump = None

    async def _close(self) -> None:
        """Closes the broken connection. Raises ServiceProblem where another attempt cannot help."""
        await self._stop_sending()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        await connection.close()
        if connection.close_code == TAKEN_OVER:
            self._let_go_of_stdin()
            self._taken_over = True
        elif connection.close_code in {1008, 1011} and self._problem is not None:
            raise self._problem


__all__ = ["Event", "Exited", "Gap", "Output", "OutputDamaged", "StdinTakenOver", "Stream", "StreamCut"]
