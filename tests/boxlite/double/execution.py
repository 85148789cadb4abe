"""An execution: one process of a box with its output, its stdin and its end, as the server sees them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable

from tests.boxlite.double.machine import GuestLost, Machine, NoSuchProcess, Process
from tests.boxlite.double.output import Stream

READ = 16 * 1024
LARGEST_STDIN = 4 << 20  # what the server's own call to the guest takes; more kills stdin without a word
LOST = -1
STREAM_ERROR = (
    'Attach stream error: status: Unknown, message: "h2 protocol error: error reading a body from connection",'
    " details: [], metadata: MetadataMap { headers: {} }"
)


class Execution:
    def __init__(self, execution_id: str, machine: Machine, process: Process, *, main: bool = False) -> None:
        self.id = execution_id
        self.streams = (Stream(1), Stream(2))
        self.exit_code: int | None = None
        self.free = asyncio.Event()  # nobody is attached
        self.free.set()
        self.doomed = False
        self.abandoned = False
        self.last_seen = asyncio.get_running_loop().time()  # when a client was attached for the last time
        self.ended_at: float | None = None
        self.terminal = process.terminal
        self.main = main
        self._machine = machine
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._done: list[Callable[[], None]] = []
        self._code: int | None = None
        self._reading: dict[int, Stream] = {}
        self._stdin = bytearray()
        self._stdin_closed = False
        self._deadline: asyncio.Task[None] | None = None
        for descriptor, stream in zip(process.outputs, self.streams, strict=False):
            self._reading[descriptor] = stream
            self._loop.add_reader(descriptor, self._read, descriptor)
        process.exited.add_done_callback(self._exited)

    @property
    def attached(self) -> bool:
        return not self.free.is_set()

    @property
    def ended(self) -> bool:
        return self.exit_code is not None

    @property
    def shown_code(self) -> int | None:
        """What clients are told: a server that stops says -1, and the process lives on."""
        return LOST if self.exit_code is None and self.abandoned else self.exit_code

    def abandon(self) -> None:
        self.abandoned = True
        self._tell()

    @property
    def leader_code(self) -> int | None:
        """How the process ended, whether or not its output has; None while it lives or was lost."""
        return None if self._code == LOST and self.main else self._code

    async def leader_ended(self) -> None:
        await asyncio.wait([self._process.exited])

    def when_done(self, call: Callable[[], None]) -> None:
        self._done.append(call)

    def forget(self, call: Callable[[], None]) -> None:
        self._done.remove(call)

    def limit(self, seconds: float, grace: float) -> None:
        """timeout_seconds: TERM, and `grace` later KILL, both to the leader alone."""

        async def watch() -> None:
            for wait, number in ((seconds, 15), (grace, 9)):
                await asyncio.sleep(wait)
                await self.signal(number)

        self._deadline = self._loop.create_task(watch())
        self._deadline.add_done_callback(lambda task: None if task.cancelled() else task.exception())

    async def signal(self, number: int) -> None:
        """To the leader, and to nobody else."""
        if self._code is not None:
            raise NoSuchProcess
        await self._machine.signal(self._process, number)

    def resize(self, columns: int, rows: int) -> None:
        if not self.ended:
            fcntl.ioctl(self._process.outputs[0], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def write(self, data: bytes) -> None:
        """Without limit and without back-pressure; what comes after the end of stdin vanishes."""
        if self._stdin_closed or self.ended:
            return
        if len(data) > LARGEST_STDIN:
            self._stdin_closed = True  # and the process is never told
            return
        waiting = bool(self._stdin)
        self._stdin += data
        if not waiting:
            self._pour()

    def end_stdin(self) -> None:
        if not self._stdin_closed and not self.ended:
            self._stdin_closed = True
            if not self._stdin:
                self._close_stdin()

    def lose(self, note: str = "") -> None:
        """The box is stopped, deleted or dead: -1 at once, whatever the process does. `note` comes on stderr."""
        if not self.ended:
            self._finish(LOST, note)

    def _pour(self) -> None:
        try:
            written = os.write(self._process.stdin, self._stdin)
            del self._stdin[:written]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            self._stdin.clear()
        self._loop.remove_writer(self._process.stdin)
        if self._stdin:
            self._loop.add_writer(self._process.stdin, self._pour)
        elif self._stdin_closed:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if not self.terminal and self._process.stdin >= 0:
            os.close(self._process.stdin)
            self._process.stdin = -1

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, READ)
        except BlockingIOError:
            return
        except OSError:  # EIO: the terminal's last user is gone
            data = b""
        if data:
            self._reading[descriptor].feed(data)
        elif self.terminal and self._code is None:
            # A program may close all of its own before it exits. To close the other side now would be a SIGHUP to it.
            self._loop.remove_reader(descriptor)
        else:
            self._end_reading(descriptor)
            self._settle()

    def _end_reading(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        self._loop.remove_writer(descriptor)
        os.close(descriptor)
        self._reading.pop(descriptor).end()

    def _exited(self, exited: asyncio.Future[int]) -> None:
        if isinstance(exited.exception(), GuestLost):
            self._code = LOST
            self.lose(STREAM_ERROR)
            return
        code = exited.result()
        self._code = 128 - code if code < 0 and self.main else code
        if self.terminal:
            for descriptor in list(self._reading):
                self._loop.add_reader(descriptor, self._read, descriptor)
        self._settle()

    def _settle(self) -> None:
        """Completed is the end of the process and of both pipes: a child that holds one keeps it `running`."""
        if self._code is not None and not self._reading and not self.ended:
            self._finish(self._code)

    def _finish(self, code: int, note: str = "") -> None:
        for descriptor in list(self._reading):
            self._end_reading(descriptor)
        for stream in self.streams:
            stream.end()
        self.streams[1].note(note)
        self.exit_code = code
        self.ended_at = self._loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.terminal and self._process.stdin >= 0:
            self._loop.remove_writer(self._process.stdin)
            self._close_stdin()
        self._tell()

    def _tell(self) -> None:
        for call in self._done:
            call()
