"""One command in a box, attached from its start to its end, on however many sockets that takes.

A socket that breaks is replaced. When the server no longer knows the execution, its end is `lost`, never an invented
code. What goes over the sockets is in `streams.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import replace
from functools import partial

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.attach import AttachCut, AttachRefused, Socket
from app.backends.boxlite.client import seen, upstream_of
from app.backends.boxlite.ending import KILLED, Ending, ExecutionBox, start_refused
from app.backends.boxlite.inside import KillResult
from app.backends.boxlite.server import BoxliteServer
from app.backends.boxlite.streams import CurrentSocket, ExactStreams, ExecutionStreams, PlainStreams
from app.backends.boxlite.wrapped import SpoiledOutput
from app.core.backend import Logs
from app.core.commands import signal_name
from app.core.errors import BackendFailure, BackendTimeout, WrongState
from app.core.models import Command, Exit, ExitReason, ResourceUsage

MAY_LIVE_ON = "processes that hide their environment may live on until the sandbox is deleted"
_SIGHUP, _SIGKILL = 1, 9


class BoxliteExecution:
    """`exact`: it runs under the wrapper."""

    def __init__(
        self,
        server: BoxliteServer,
        box: ExecutionBox,
        mark: str,
        command: Command,
        logs: Logs,
        stdin_limit: int,
        *,
        exact: bool,
    ) -> None:
        self._server, self._box, self._mark, self._command = server, box, mark, command
        self._timeouts, self._exact = server.timeouts, exact
        self._ending = Ending(box, mark, server.timeouts)
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._exit: asyncio.Future[Exit] = loop.create_future()
        self._has_exit = asyncio.Event()  # behind `asyncio.shield` of the future one would go on a turn later
        self._current = CurrentSocket(self._exit)
        self._streams: ExecutionStreams
        if exact:
            self._streams = ExactStreams(logs, self._current, self._exit)
        else:
            self._streams = PlainStreams(logs, server.timeouts.backlog_silence, self._current, stdin_limit, command)
        self._size = command.tty
        self._reader: asyncio.Task[None] | None = None
        self._id = ""
        self._began = time.perf_counter()
        self._killing: asyncio.Task[None] | None = None
        self._hung_up = False  # we sent SIGHUP, which the server reports as -1

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
                if self._streams.may_lack_the_end:
                    await self._look_again()
                refused = start_refused(self._command, self._streams.refusal, code)
                self._end(refused or await self._ending.natural(code, hung_up=self._hung_up))
        except SpoiledOutput:
            await self._spoiled()
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
                    return await self._streams.take(socket)
            except AttachRefused as refused:
                if refused.status == 404:
                    self._end(await self._ending.forgotten())
                    return None
            except AttachCut:
                pass
            finally:
                self._current.end()
            failures = 0 if self._loop.time() - opened > self._timeouts.stable_after else failures
            await asyncio.sleep(self._timeouts.pause(failures))
            await self._box.server_there()
            failures += 1
        return None

    async def _introduce(self, socket: Socket) -> None:
        if self._size is not None:  # the server starts every terminal with 24 by 80
            await socket.resize(self._size.rows, self._size.cols)
        await self._streams.introduce(socket)
        self._current.begin(socket)

    async def _look_again(self) -> None:
        """A reader that was behind when the program ended has missed the end of its output without a word: the server
        repeats the last 256 KiB of a completed execution as often as it is asked."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.backlog_after_end):
                for delay in (0.0, *self._timeouts.backoff):
                    await asyncio.sleep(delay)
                    try:
                        async with self._server.attach(self._box.box_id, self._id) as socket:
                            await self._streams.take(socket)
                            return
                    except AttachRefused as refused:
                        if refused.status != 409:  # the server waits for the Close of the first socket
                            return
                    except AttachCut:
                        continue

    async def _spoiled(self) -> None:
        """Something in the box writes where only the wrapper should, or the server said that it lost the box."""
        why = await self._box.look()
        await self._box.kill_when_possible(self._mark)
        self._end(Exit(ExitReason.LOST, detail=why or "something in the box wrote between the pieces of its output"))

    def on_sandbox_end(self, exit_: Exit) -> None:
        self._end(exit_)
        if self._reader is not None:
            self._reader.cancel()

    def _end(self, exit_: Exit) -> None:
        if self._exit.done():
            return
        missing = self._streams.end(destroyed=self._box.ending)
        detail = exit_.detail
        if self._killing is not None and exit_.signal == "SIGKILL":
            detail = detail or MAY_LIVE_ON
        detail = detail or missing
        duration = round(time.perf_counter() - self._began, 6) if exit_.reason is not ExitReason.START_FAILED else None
        unprompted = self._killing is None and not self._box.ending
        self._exit.set_result(replace(exit_, detail=detail, duration_seconds=duration, unprompted=unprompted))
        self._has_exit.set()

    @property
    def ended(self) -> bool:
        return self._exit.done()

    # --- the contract

    async def write(self, data: bytes) -> bool:
        if self._exit.done():
            return False
        return await self._streams.write(data) and not self._exit.done()

    async def close_stdin(self) -> None:
        if not self._exit.done():
            await self._streams.close_stdin()

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
        swept = KillResult.LEFT
        with contextlib.suppress(BackendFailure):
            swept = await self._box.inside.kill(self._mark)
        if await self._ended_within(0 if swept is KillResult.LEFT else self._timeouts.exit_after_kill):
            return
        if self._exact:  # before the command began, or what it left behind has its output open
            with contextlib.suppress(BackendFailure):
                await self._box.inside.sweep(self._mark)
        try:
            killed = await self._server.kill(self._box.box_id, self._id)
        except BackendFailure as error:
            if self._exit.done():
                return
            raise BackendTimeout(
                RUNTIME, f"nothing confirms that the execution has ended: {error}", upstream_of(error)
            ) from error
        if not await self._ended_within(self._timeouts.exit_after_kill):
            # A child that holds the pipes delays the exit frame for ever, and of a killed execution nothing can be
            # asked any more.
            dead = killed or swept is KillResult.KILLED
            self._end(KILLED if dead else Exit(ExitReason.LOST, detail=f"the execution had ended; {MAY_LIVE_ON}"))
            if self._reader is not None:
                self._reader.cancel()

    async def _ended_within(self, seconds: float) -> bool:
        await asyncio.wait([self._exit], timeout=seconds)
        return self._exit.done()

    async def usage(self) -> ResourceUsage:
        return ResourceUsage()

    async def wait(self) -> Exit:
        await self._has_exit.wait()
        return self._exit.result()

    async def output_ended(self) -> None:
        """Returns at once: processes that are left behind in a box print to the server, which costs the gateway
        nothing."""
        await self.wait()
