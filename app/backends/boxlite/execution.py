"""One command in a box, attached from its start to its end, on however many sockets that takes.

The reader only moves frames into the logs. A broken socket is replaced, and output that is repeated is skipped. If the
server no longer knows the execution, it is `lost`: no exit code is invented.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.attach import AttachCut, AttachRefused, Socket
from app.backends.boxlite.client import seen, upstream_of
from app.backends.boxlite.ending import KILLED, Ending, ExecutionBox
from app.backends.boxlite.inside import Swept
from app.backends.boxlite.output import Intake
from app.backends.boxlite.server import BoxliteServer
from app.core.backend import Logs
from app.core.commands import signal_name
from app.core.errors import BackendFailure, BackendTimeout, PayloadTooLarge, WrongState
from app.core.models import Command, Exit, ExitReason, ResourceUsage, Stdin

BUSY_PIECES = 32  # with fewer a reader cannot have been 256 chunks behind for long: its end is not looked at again
MAY_LIVE_ON = "processes that hide their environment may live on until the sandbox is deleted"
_SIGHUP, _SIGKILL = 1, 9
_CTRL_D = b"\x04"  # end of file on a terminal whose program did not choose another character


class BoxliteExecution:
    def __init__(
        self, server: BoxliteServer, box: ExecutionBox, mark: str, command: Command, logs: Logs, stdin_limit: int
    ) -> None:
        self._server, self._box, self._mark, self._command = server, box, mark, command
        self._stdin_limit, self._stdin_left = stdin_limit, stdin_limit
        self._timeouts = server.timeouts
        self._ending = Ending(box, mark, server.timeouts)
        self._intake = Intake(logs, server.timeouts.quiet)
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._exit: asyncio.Future[Exit] = loop.create_future()
        self._socket: Socket | None = None
        self._connected = asyncio.Event()
        self._stdin_over = command.stdin is Stdin.NONE
        self._size = command.tty
        self._last_typed = b"\n"
        self._reader: asyncio.Task[None] | None = None
        self._id = ""
        self._began = time.perf_counter()
        self._killing: asyncio.Task[None] | None = None
        self._hung_up = False  # we sent SIGHUP, which the server reports as -1
        self._fed = self._in_doubt = False

    # --- from start to end

    def begin(self, execution_id: str) -> None:
        self._id = execution_id
        self._reader = self._loop.create_task(self._read())

    def fail_start(self, exit_: Exit) -> None:
        self._end(exit_)

    async def _read(self) -> None:
        try:
            code = await self._until_exit()
            if code is not None:
                if self._intake.pieces >= BUSY_PIECES:
                    await self._look_again()
                self._end(await self._ending.natural(code, hung_up=self._hung_up))
        except BackendFailure as error:
            self._end(Exit(ExitReason.LOST, detail=str(error)))
        except Exception as error:  # a fault of ours must not leave an execution that runs for ever
            self._end(Exit(ExitReason.LOST, detail=f"the reader of its output failed: {type(error).__name__}"))
            raise

    async def _until_exit(self) -> int | None:
        """The server's exit code, over as many sockets as it takes; None when the end was told some other way."""
        failures = 0
        while not self._exit.done():
            opened = math.inf
            try:
                async with self._server.attach(self._box.box_id, self._id) as socket:
                    opened = self._loop.time()
                    await self._introduce(socket)
                    return await self._intake.take(socket.frames())
            except AttachRefused as refused:
                if refused.status == 404:
                    self._end(await self._ending.forgotten())
                    return None
            except AttachCut:
                self._in_doubt = self._in_doubt or self._fed
            finally:
                self._socket = None
                self._connected.clear()
            failures = 0 if self._loop.time() - opened > self._timeouts.steady else failures
            await asyncio.sleep(self._timeouts.pause(failures))
            await self._box.server_there()
            failures += 1
        return None

    async def _introduce(self, socket: Socket) -> None:
        if self._size is not None:  # the server starts every terminal with 24 by 80
            await socket.resize(self._size.rows, self._size.cols)
        if self._stdin_over and self._size is None:
            await socket.end_stdin()
        self._fed = False
        self._intake.begin_socket()
        self._socket = socket
        self._connected.set()

    async def _look_again(self) -> None:
        """A reader that was behind when the program ended has missed the end of its output without a word: the server
        repeats the last 256 KiB of a completed execution as often as it is asked."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.again):
                for delay in (0.0, *self._timeouts.backoff):
                    await asyncio.sleep(delay)
                    try:
                        async with self._server.attach(self._box.box_id, self._id) as socket:
                            self._intake.begin_socket()
                            await self._intake.take(socket.frames())
                            return
                    except AttachRefused as refused:
                        if refused.status != 409:  # the server waits for the Close of the first socket
                            return
                    except AttachCut:
                        continue

    def on_sandbox_end(self, exit_: Exit) -> None:
        self._end(exit_)
        if self._reader is not None:
            self._reader.cancel()

    def _end(self, exit_: Exit) -> None:
        if self._exit.done():
            return
        self._intake.end()
        detail = exit_.detail
        if self._killing is not None and exit_.signal == "SIGKILL":
            detail = detail or MAY_LIVE_ON
        elif self._in_doubt and detail is None:
            detail = "the connection to the BoxLite server broke while stdin was sent: some of it may be missing"
        duration = round(time.perf_counter() - self._began, 6) if exit_.reason is not ExitReason.START_FAILED else None
        unprompted = self._killing is None and not self._box.ending
        self._exit.set_result(replace(exit_, detail=detail, duration_seconds=duration, unprompted=unprompted))
        self._connected.set()

    @property
    def ended(self) -> bool:
        return self._exit.done()

    # --- the contract

    async def write(self, data: bytes) -> bool:
        if self._stdin_over or self._exit.done():
            return False
        if len(data) > self._stdin_left:
            # The server takes in what the program does not read, without limit, and says nothing. Nothing smaller may
            # follow: it would go on behind a gap.
            self._stdin_left = 0
            raise PayloadTooLarge(self._stdin_limit, "all stdin of this execution", "write it to a file of the sandbox")
        self._stdin_left -= len(data)
        self._last_typed = data[-1:] or self._last_typed
        await self._to_socket(lambda socket: socket.write(data))
        return not self._exit.done()

    async def close_stdin(self) -> None:
        if not self._stdin_over and not self._exit.done():
            self._stdin_over = True
            await self._to_socket(self._end_stdin)

    async def _end_stdin(self, socket: Socket) -> None:
        await (socket.end_stdin() if self._size is None else socket.write(self._typed_end()))

    def _typed_end(self) -> bytes:
        """A terminal cannot be closed for reading alone. Behind half a line Ctrl-D only ends the line."""
        return _CTRL_D if self._last_typed in (b"\n", b"\r", _CTRL_D) else _CTRL_D * 2

    async def _to_socket(self, say: Callable[[Socket], Awaitable[None]]) -> None:
        """On the socket of the moment, or the next one. The end of the execution lets go of whoever waits."""
        saying = self._loop.create_task(self._say(say))
        both: list[asyncio.Future[Any]] = [saying, self._exit]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not saying.done():
            saying.cancel()
        await asyncio.wait([saying])
        if not saying.cancelled():
            saying.result()

    async def _say(self, say: Callable[[Socket], Awaitable[None]]) -> None:
        await self._connected.wait()
        socket = self._socket
        if socket is None:
            return  # ended
        self._fed = True
        try:
            await say(socket)
        except AttachCut:
            self._in_doubt = True

    async def resize(self, rows: int, cols: int) -> None:
        if self._exit.done():
            raise WrongState("ended", "the execution has ended")
        if self._size is not None:
            self._size = replace(self._size, rows=rows, cols=cols)
        with self._box.asks:
            if not await self._server.resize(self._box.box_id, self._id, rows, cols):
                raise WrongState("ended", "the execution has ended")

    async def signal(self, number: int) -> None:
        """Signals the group through the box's own shell. Where that is impossible, the server signals the first
        process."""
        if self._exit.done():
            raise WrongState("ended", "the execution has ended")
        with self._box.asks:
            await self._signal(number)

    async def _signal(self, number: int) -> None:
        self._hung_up = self._hung_up or number == _SIGHUP
        with contextlib.suppress(BackendFailure):
            if await self._box.inside.signal(self._mark, number):
                return
        send = self._server.kill if number == _SIGKILL else partial(self._server.signal, number=number)
        if not await send(self._box.box_id, self._id):
            raise WrongState("ended", f"no process of the execution can be reached with {signal_name(number)}")

    async def kill(self) -> None:
        if self._killing is None or self._killing.done():
            self._killing = self._loop.create_task(self._kill())
            self._killing.add_done_callback(seen)
        await asyncio.shield(self._killing)

    async def _kill(self) -> None:
        """By the mark, which finds daemons too; then the server's own kill of the first process; then we say so."""
        if not self._id:
            return
        swept = Swept.LEFT
        with contextlib.suppress(BackendFailure):
            swept = await self._box.inside.kill(self._mark)
        if await self._ended_within(0 if swept is Swept.LEFT else self._timeouts.leader):
            return
        try:
            killed = await self._server.kill(self._box.box_id, self._id)
        except BackendFailure as error:
            if self._exit.done():
                return
            raise BackendTimeout(
                RUNTIME, f"nothing confirms that the execution has ended: {error}", upstream_of(error)
            ) from error
        if not await self._ended_within(self._timeouts.leader):
            # A child that holds the pipes delays the exit frame for ever, and of a killed execution nothing can be
            # asked any more.
            dead = killed or swept is Swept.KILLED
            self._end(KILLED if dead else Exit(ExitReason.LOST, detail=f"the execution had ended; {MAY_LIVE_ON}"))
            if self._reader is not None:
                self._reader.cancel()

    async def _ended_within(self, seconds: float) -> bool:
        await asyncio.wait([self._exit], timeout=seconds)
        return self._exit.done()

    async def usage(self) -> ResourceUsage:
        return ResourceUsage()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._exit)

    async def output_ended(self) -> None:
        """Returns at once: processes that are left behind in a box print to the server, which costs the gateway
        nothing."""
        await self.wait()
