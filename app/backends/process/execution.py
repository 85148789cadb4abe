"""One command in a process sandbox, from the packet that starts it to the status that the kernel reports."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from app.backends.process.link import LauncherLink, LauncherRefused, LauncherReply, close_all
from app.backends.process.pipes import PipeBudget
from app.backends.process.plan import command_body, execution_plan
from app.backends.process.streams import Streams
from app.backends.process.terminal import PseudoTerminal
from app.backends.process.usage import resource_usage
from app.core.backend import Logs
from app.core.commands import hint_for, signal_name
from app.core.errors import BackendFailure, BackendRefused, BackendTimeout, BackendUnavailable, Upstream, WrongState
from app.core.models import Command, Exit, ExitReason, ResourceUsage, Terminal
from app.launcher.protocol import (
    EXECUTE,
    FINISH,
    KILL,
    MAX_PACKET,
    STEP_CGROUP,
    STEP_LIMITS,
    STEP_WORKDIR,
    USAGE,
    ProtocolError,
    Writer,
)

_STEPS = {STEP_CGROUP: "join_cgroup", STEP_LIMITS: "set_limits"}
_GONE = (errno.ENOENT, errno.ENODEV)  # no such execution; a control group that was removed while it was read
LAST_WORD_SECONDS = 10.0  # for what the worker has to say about an end, on a machine that is busy
_START_SECONDS = 5.0
LOST = Exit(ExitReason.LOST, detail="the sandbox ended without telling how the command ended")


class ProcessExecution:
    """The sandbox's owner socket reports to it: `on_started`, `on_start_failed`, `on_exited`, `on_sandbox_end`."""

    def __init__(
        self,
        link: LauncherLink,
        sandbox_id: str,
        number: int,
        send_signal: Callable[[int, int], None],
        on_silence: Callable[[], None],
        on_over: Callable[[], object],
    ) -> None:
        """`on_over`: called when it has ended and nothing holds its output any more."""
        self._link, self.number, self._send_signal, self._on_silence = link, number, send_signal, on_silence
        self._on_over = on_over
        self._name = bytes(Writer(0).text(sandbox_id).u32(number).data[1:])  # in every request to the launcher
        loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = loop.create_future()
        self._exit: asyncio.Future[Exit] = loop.create_future()
        self._has_exit = asyncio.Event()  # behind `asyncio.shield` of the future one would go on a turn later
        self._streams = Streams()
        self._terminal: PseudoTerminal | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._argv0 = ""
        self._workdir = ""
        self._began_at = 0.0
        self._too_late: Exit | None = None
        self._killing = False

    # --- start

    async def start(
        self, command: Command, logs: Logs, budget: PipeBudget, terminal: PseudoTerminal | None = None
    ) -> None:
        """Hands the command over before it awaits anything. Returns when the command runs or could not be started. Owns
        `terminal`, which a command with `tty` needs. Raises BackendUnavailable or BackendTimeout."""
        self._argv0, self._workdir = command.argv[0], command.workdir
        if terminal is not None:
            self._streams = self._terminal = terminal
        try:
            request, refused = self._hand_over(command, logs, budget)
        except (OSError, BackendFailure) as error:  # no descriptor is left, or no launcher: it never was
            self._fail_start(LOST)
            if isinstance(error, OSError):
                raise BackendUnavailable(
                    "process", f"no descriptors are left for a command: {error.strerror}"
                ) from error
            raise
        refused.add_done_callback(self._on_refused)
        try:
            await self._until_begun(min(_START_SECONDS, command.timeout_seconds))
        finally:
            self._link.forget(request)

    def refuse(self, refused: LauncherRefused) -> ProcessExecution:
        """Ends what the launcher refused before it was handed over: its start failed. Returns itself."""
        self._fail_start(_not_begun(refused))
        return self

    def _hand_over(self, command: Command, logs: Logs, budget: PipeBudget) -> tuple[int, asyncio.Future[LauncherReply]]:
        """Raises OSError, BackendUnavailable."""
        with contextlib.ExitStack() as far_ends:
            descriptors = self._streams.open(command, logs, budget, far_ends)
            body = command_body(command)
            in_memfd = len(body) > MAX_PACKET - 256
            if in_memfd:
                descriptors.append(_memfd(body, far_ends))
            header = execution_plan(command.limits).write(Writer(in_memfd)).data
            packet = self._name + bytes(header) + (b"" if in_memfd else body)
            self._began_at = time.perf_counter()
            return self._link.post(Writer(EXECUTE), packet, descriptors)

    async def _until_begun(self, seconds: float) -> None:
        """The worker waits for the exec in a vfork, and a neighbour of the same sandbox can stop what has not got there
        yet (kill(-1, SIGSTOP)): then it is killed. Raises BackendTimeout when that does not help either."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(self._begun)
        except TimeoutError:
            self._too_late = Exit(
                ExitReason.START_FAILED if seconds == _START_SECONDS else ExitReason.TIMEOUT,
                detail=f"the command did not begin within {seconds:g} seconds: something in the sandbox stopped it",
            )
        await self.kill()
        try:
            async with asyncio.timeout(_START_SECONDS):
                await asyncio.shield(self._begun)
        except TimeoutError:
            raise BackendTimeout("process", "the sandbox cannot start commands any more; delete it") from None
        return None

    def _on_refused(self, answer: asyncio.Future[LauncherReply]) -> None:
        """The launcher answers an EXECUTE only to refuse it."""
        if answer.cancelled() or (error := answer.exception()) is None or self._begun.done():
            return
        if isinstance(error, LauncherRefused):
            self._fail_start(_not_begun(error))
        else:
            self._fail_start(replace(LOST, detail=str(error)))

    def _fail_start(self, exit_: Exit) -> None:
        if not self._begun.done():
            self._begun.set_result(None)
        self._end(exit_)
        self._streams.close()

    # --- the worker's words

    def on_started(self) -> None:
        if self._begun.done():
            raise ProtocolError("started twice")
        self._begun.set_result(None)

    def on_start_failed(self, number: int, step: int) -> None:
        if self._begun.done():
            raise ProtocolError("failed to start after the start")
        name, sentence = _errno_name(number), os.strerror(number)
        if step == STEP_WORKDIR:
            detail = f"the working directory {self._workdir!r} cannot be entered: {name} ({sentence})"
        elif step in _STEPS:
            detail = f"step {_STEPS[step]} failed: {name} ({sentence})"
        else:
            detail = f"{self._argv0!r} cannot be executed: {name} ({sentence})" + hint_for(self._argv0, number)
        not_found = step not in (STEP_WORKDIR, *_STEPS) and number in (errno.ENOENT, errno.ENOTDIR)
        self._begun.set_result(None)
        self._finishing = asyncio.get_running_loop().create_task(
            self._finish(Exit(ExitReason.START_FAILED, detail=detail, not_found=not_found))
        )

    def on_exited(self, status: int) -> None:
        if not self._begun.done() or self._finishing is not None:
            raise ProtocolError("an ending out of turn")
        natural = self._too_late or _natural(status)
        exit_ = replace(natural, duration_seconds=self._duration(), unprompted=not self._killing)
        self._finishing = asyncio.get_running_loop().create_task(self._finish(exit_))

    def on_sandbox_end(self, *, killed: bool) -> None:
        """The whole sandbox is gone. If not `killed` by Bulkhead, nobody knows how."""
        if self._exit.done():
            self._streams.close()
            return
        if not self._begun.done():
            self._begun.set_result(None)
        exit_ = Exit(ExitReason.SIGNALED, signal="SIGKILL", duration_seconds=self._duration()) if killed else LOST
        if self._finishing is None:
            self._finishing = asyncio.get_running_loop().create_task(self._finish(exit_, ask_usage=False))

    def _duration(self) -> float:
        """Since it was handed to the launcher, which is before its first instruction; the loop's own clock stands still
        within a turn."""
        return round(time.perf_counter() - self._began_at, 6)

    async def _finish(self, exit_: Exit, *, ask_usage: bool = True) -> None:
        if ask_usage:
            with contextlib.suppress(LauncherRefused, BackendFailure, ProtocolError, ValueError):
                exit_ = await self._with_usage(exit_)
        await self._streams.drain()
        self._end(exit_)

    async def _with_usage(self, exit_: Exit) -> Exit:
        answer = (await self._link.request(FINISH, self._name)).source
        cpu_ns, peak, ooms, _alive = answer.u64(), answer.u64(), answer.u32(), answer.u8()
        reason, why = answer.text(), answer.text()
        # A host without the controller says 0, which no process that ran can have used.
        exit_ = replace(exit_, cpu_seconds=cpu_ns / 1e9 or None, max_memory_bytes=peak or None)
        if reason and exit_.signal == "SIGKILL":  # the launcher ended it, and this is what ended it
            with contextlib.suppress(LauncherRefused, BackendFailure):
                await self._link.request(KILL, self._name)  # when the end is told, all that it started is gone
            return replace(exit_, reason=ExitReason(reason), detail=why)
        if ooms == 0 or exit_.reason is ExitReason.START_FAILED or exit_.code == 0:
            return exit_
        how = f"exit code {exit_.code}" if exit_.code is not None else str(exit_.signal)
        detail = f"the kernel killed {ooms} of its processes at the memory limit; the first process ended with {how}"
        return replace(exit_, reason=ExitReason.OOM, code=None, signal="SIGKILL", detail=detail)

    def _end(self, exit_: Exit) -> None:
        if not self._exit.done():
            self._exit.set_result(exit_)
            self._has_exit.set()
        self._streams.close_stdin()

    async def settled(self) -> None:
        """Waits after the sandbox's end until everything that was printed is in the logs and no descriptor is open."""
        await self._has_exit.wait()
        self._streams.close()

    # --- the contract

    async def write(self, data: bytes) -> bool:
        return self._streams.stdin is not None and await self._streams.stdin.write(data)

    async def close_stdin(self) -> None:
        if self._streams.stdin is not None:
            self._streams.stdin.end()

    async def resize(self, rows: int, cols: int) -> None:
        if self._terminal is None or self._told:
            raise WrongState("ended" if self._told else "running", "the execution has no terminal")
        self._terminal.resize(Terminal(rows, cols))

    async def signal(self, number: int) -> None:
        if self._told:
            raise WrongState("ended", "the execution has ended")
        self._send_signal(self.number, number)

    async def kill(self) -> None:
        self._killing = True
        try:
            await self._link.request(KILL, self._name)
        except LauncherRefused as refused:
            # Gone, and all of it with it; or a host whose control groups the operator gave up: only the group is left.
            if refused.errno != errno.ENOTSUP or self._told:
                return
            self._send_signal(self.number, signal.SIGKILL)
        if not self._told:  # a worker that is still ours says at once that the first process has ended
            asyncio.get_running_loop().call_later(LAST_WORD_SECONDS, self._check_told)

    @property
    def _told(self) -> bool:
        return self._finishing is not None or self._exit.done()

    def _check_told(self) -> None:
        if not self._told:
            self._on_silence()

    async def usage(self) -> ResourceUsage:
        """Raises BackendFailure while it runs. After its end the final figures are there without the launcher."""
        try:
            return await self._usage_now()
        except LauncherRefused as refused:
            if refused.errno not in _GONE and not self._exit.done():
                raise BackendRefused("process", f"the usage is not known: {refused.detail}", Upstream()) from refused
        except BackendFailure:
            if not self._exit.done():
                raise
        end = await self.wait()  # nothing of it is left, so its end is known, or will be at once
        return ResourceUsage(0, end.max_memory_bytes, end.cpu_seconds, processes=0, open_files=0)

    async def _usage_now(self) -> ResourceUsage:
        """Raises LauncherRefused, BackendUnavailable, BackendTimeout."""
        try:
            return resource_usage((await self._link.request(USAGE, self._name)).source)
        except ProtocolError as error:
            raise BackendUnavailable("process", "the launcher does not speak its protocol") from error

    async def wait(self) -> Exit:
        await self._has_exit.wait()
        return self._exit.result()

    async def output_ended(self) -> None:
        await self._has_exit.wait()
        await self._streams.output_ended()
        self._on_over()


def _not_begun(refused: LauncherRefused) -> Exit:
    detail = f"step {refused.step} failed: {_errno_name(refused.errno)} ({refused.detail})"
    return Exit(ExitReason.START_FAILED, detail=detail)


def _natural(status: int) -> Exit:
    if os.WIFSIGNALED(status):
        return Exit(ExitReason.SIGNALED, signal=signal_name(os.WTERMSIG(status)))
    return Exit(ExitReason.EXITED, code=os.WEXITSTATUS(status))


def _errno_name(number: int) -> str:
    return errno.errorcode.get(number, f"errno {number}")


def _memfd(body: bytes, until: contextlib.ExitStack) -> int:
    descriptor = os.memfd_create("command", os.MFD_CLOEXEC)
    until.callback(close_all, [descriptor])
    view = memoryview(body)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor
