"""The gateway's side of a file agent: starts it in the sandbox, speaks with it, and sees to its end.

An agent speaks from inside a sandbox. So its messages are parsed as hostile, and waited for only for a limited time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable

from app.backends.process.link import LauncherLink, LauncherRefused, LauncherReply
from app.backends.process.pipes import PipeBudget
from app.backends.process.transfer import Transfer, until_ready
from app.core.errors import (
    BackendFailure,
    BackendTimeout,
    BackendUnavailable,
    CapacityExceeded,
    WrongState,
)
from app.launcher.protocol import (
    AGENT,
    FINISH,
    KILL,
    MAX_PACKET,
    STEP_CGROUP,
    ProtocolError,
    Reader,
    Writer,
)
from app.launcher.protocol.files import FAILED, LONGEST, UNPACK, WRITE

ANSWER_SECONDS = 10.0
_LAST_WORD_SECONDS = 5.0
_UNDOING_SECONDS = 10.0  # for an agent that was disconnected from to remove what it had begun
_INTO = (WRITE, UNPACK)


class OutOfMemory(Exception):
    """The kernel killed the agent at the sandbox's memory limit."""


class Failed(Exception):
    """The agent failed. It has the kernel's errno, what is in the way (an index into KINDS), and where."""

    def __init__(self, number: int, kind: int, path: bytes) -> None:
        self.errno, self.kind, self.path = number, kind, path
        super().__init__(os.strerror(number))


def _refused_by_launcher(reason: str) -> CapacityExceeded:
    detail = f"the launcher starts no operation on files: {reason}; try again when one has ended"
    return CapacityExceeded("executions of the launcher", holder="sandbox", detail=detail)


def _no_process(number: int) -> CapacityExceeded:
    detail = (
        f"the sandbox has no room for the process of an operation on files: {os.strerror(number)}; end something that "
        "runs in it, or create a sandbox with more limits.processes or limits.memory_mib"
    )
    return CapacityExceeded("processes", holder="sandbox", detail=detail)


class FileAgentClient:
    """The sandbox's owner socket reports to it, as for a command. `on_over` is called once, when nothing of it is
    left."""

    def __init__(self, link: LauncherLink, sandbox_id: str, number: int, on_over: Callable[[], object]) -> None:
        self._link, self.number, self._on_over = link, number, on_over
        self._name = bytes(Writer(0).text(sandbox_id).u32(number).data[1:])
        self._loop = asyncio.get_running_loop()
        self._control: socket.socket | None = None
        self._data: Transfer | None = None
        self._begun = False
        self._request = -1
        self._finishing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[Exception] = self._loop.create_future()  # and why it ended without an answer

    @property
    def data(self) -> Transfer:
        if self._data is None:
            raise BackendFailure("the file agent was not started")
        return self._data

    # --- start

    def start(self, request: Writer, budget: PipeBudget) -> None:
        """Returns at once. The first answer reports a later failure. Raises BackendUnavailable."""
        try:
            with contextlib.ExitStack() as far_ends:
                self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                far_ends.callback(theirs.close)
                self._control.setblocking(False)
                reads, writes = os.pipe2(os.O_CLOEXEC)
                near, far = (writes, reads) if request.data[0] in _INTO else (reads, writes)
                far_ends.callback(os.close, far)
                self._data = Transfer(near, budget)
                packet = self._name + b"\0" + bytes(request.data)
                self._request, refused = self._link.post(Writer(AGENT), packet, [theirs.fileno(), far])
        except (OSError, BackendUnavailable) as error:  # it never was, and nobody else knows our ends of it
            self._hang_up()
            self._end(BackendUnavailable("process", f"no file agent could be started: {error}"))
            if isinstance(error, OSError):
                raise BackendUnavailable(
                    "process", f"no descriptors are left for a file operation: {error.strerror}"
                ) from error
            raise
        refused.add_done_callback(self._on_refused)

    def _on_refused(self, answer: asyncio.Future[LauncherReply]) -> None:
        """The launcher answers an AGENT only to refuse it."""
        if answer.cancelled() or (error := answer.exception()) is None:
            return
        if isinstance(error, LauncherRefused):
            if error.errno == errno.EDQUOT:
                return self._end(_refused_by_launcher(error.detail))
            return self._end(BackendFailure(f"step {error.step} failed: {error.detail}"))
        return self._end(BackendUnavailable("process", str(error)))

    # --- the worker's words

    def on_started(self) -> None:
        if self._begun:
            raise ProtocolError("started twice")
        self._begun = True

    def on_start_failed(self, number: int, step: int) -> None:
        if self._begun or self._finishing is not None:
            raise ProtocolError("failed to start after the start")
        if number in (errno.EAGAIN, errno.ENOMEM) and step != STEP_CGROUP:
            why: Exception = _no_process(number)
        else:
            why = BackendFailure(f"no file agent could be started: {os.strerror(number)}")
        self._finishing = self._loop.create_task(self._finish(why))

    def on_exited(self, status: int) -> None:
        if not self._begun or self._finishing is not None:
            raise ProtocolError("an ending out of turn")
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"code {os.WEXITSTATUS(status)}"
        why = BackendFailure(f"the file agent ended without an answer, with {how}")
        self._finishing = self._loop.create_task(self._finish(why))

    def on_sandbox_end(self, *, killed: bool) -> None:
        del killed
        self._end(WrongState("destroyed", "the sandbox has ended"))

    async def _finish(self, why: Exception) -> None:
        with contextlib.suppress(LauncherRefused, BackendFailure, ProtocolError):
            answer = (await self._link.request(FINISH, self._name)).source
            _cpu_ns, _peak_bytes, ooms = answer.u64(), answer.u64(), answer.u32()
            if ooms:  # of all processes in the sandbox the kernel chose the agent
                why = OutOfMemory()
        self._end(why)

    def _end(self, why: Exception) -> None:
        if self._over.done():
            return
        self._over.set_result(why)
        self._link.forget(self._request)
        if self._timer is not None:
            self._timer.cancel()
        self._on_over()

    async def settled(self) -> None:
        """Waits after the sandbox's end. The operation closes the near ends when it finds the far ends closed."""
        await asyncio.shield(self._over)

    # --- speaking with it

    def tell(self, record: Writer) -> None:
        """Sends a record, also to an agent that is gone: the missing answer shows that."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(bytes(record.data), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    async def hear(self, *expected: int, seconds: float = ANSWER_SECONDS) -> tuple[int, Reader]:
        """Returns the next record. Raises Failed, or the reason why there is none."""
        data = await self._receive(seconds)
        if not data:
            raise await self._why()
        source = Reader(data)
        try:
            kind = source.u8()
            if kind == FAILED:
                raise Failed(source.u32(), source.u8(), source.blob(LONGEST))
        except ProtocolError:
            kind = 0
        if kind not in expected:
            raise BackendFailure("the file agent does not speak its protocol")
        return kind, source

    async def _receive(self, seconds: float) -> bytes:
        deadline = self._loop.time() + seconds
        while self._control is not None:
            try:
                return self._control.recv(MAX_PACKET, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError:
                break
            try:
                await until_ready(self._control.fileno(), max(0.0, deadline - self._loop.time()))
            except TimeoutError:
                raise BackendTimeout("process", f"the file agent said nothing for {seconds:g} seconds") from None
        return b""

    async def _why(self) -> Exception:
        try:
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                return await asyncio.shield(self._over)
        except TimeoutError:
            return BackendTimeout("process", "the sandbox does not carry out file operations any more; delete it")

    # --- the end

    def _hang_up(self) -> None:
        """The control socket goes first: an end of data alone would look like a whole file."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._data is not None:
            self._data.close()

    async def close(self, *, undone: bool) -> None:
        """With `undone` it waits until the agent has removed what it had begun."""
        self._hang_up()
        if self._over.done():
            return
        self._timer = self._loop.call_later(_UNDOING_SECONDS, self._kill)
        if undone:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_UNDOING_SECONDS + 1):
                    await asyncio.shield(self._over)

    def _kill(self) -> None:
        with contextlib.suppress(BackendUnavailable):  # the launcher is gone, and every sandbox with it
            _, answer = self._link.post(Writer(KILL), self._name, ())
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
