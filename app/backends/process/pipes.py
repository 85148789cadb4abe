"""A command's three streams on the gateway's side: two output pumps and one stdin pipe, all non-blocking.

The gateway makes the pipes. Launcher and worker only pass the far ends along.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable

from app.core.output import CHUNK, OutputLog

_QUIET_SECONDS, _MOST_DRAIN_SECONDS = 0.05, 1.0
STDIN_BUFFER = 1024 * 1024
BIG_PIPE = 1024 * 1024
_F_SETPIPE_SZ = 1031
_BUSY_READS = 16


class PipeBudget:
    """An unprivileged user may own 64 MiB of pipes before the kernel makes them 8 KiB small (pipe(7)), so only a few
    busy pipes grow. Measured: 64 KiB frames from a 1 MiB pipe move 10 % faster than from a 64 KiB one."""

    def __init__(self, pipes: int = 16) -> None:
        self.left = pipes

    def grow(self, descriptor: int) -> bool:
        if self.left <= 0:
            return False
        try:
            fcntl.fcntl(descriptor, _F_SETPIPE_SZ, BIG_PIPE)
        except OSError:
            return False
        self.left -= 1
        return True


class OutputPump:
    """Reads one channel into its log while any process holds the other end. After the log is closed, it reads on and
    discards, so that a process that was left behind gets no SIGPIPE."""

    def __init__(self, descriptor: int, log: OutputLog, budget: PipeBudget) -> None:
        os.set_blocking(descriptor, False)
        self._fd, self._log, self._budget = descriptor, log, budget
        self._loop = asyncio.get_running_loop()
        self._full_reads, self._grown = 0, False
        self._changed: Callable[[], None] | None = None
        self._ended = asyncio.Event()
        self._loop.add_reader(descriptor, self._readable)

    @property
    def at_end(self) -> bool:
        return self._fd < 0

    def _readable(self) -> None:
        if self._read_once() and self._changed is not None:
            self._changed()

    def _read_once(self) -> bool:
        """False when there is nothing now."""
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return True
        self._full_reads = self._full_reads + 1 if len(data) == CHUNK else 0
        if self._full_reads == _BUSY_READS and not self._grown:
            self._grown = self._budget.grow(self._fd)
        self._log.append(data)
        return True

    async def drain(self) -> None:
        """Reads after the end of the first process: everything that it wrote, then until end of file or 50 ms of
        silence, at most 1 s."""
        if not self.at_end:
            left: int = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, b"\0\0\0\0"))[0]
            before = self._log.total
            while not self.at_end and self._log.total - before < left and self._read_once():
                pass
            self._read_until_empty()
        deadline = self._loop.time() + _MOST_DRAIN_SECONDS
        while not self.at_end and (left_seconds := deadline - self._loop.time()) > 0:
            if not await self._next_change(min(_QUIET_SECONDS, left_seconds)):
                return

    def _read_until_empty(self) -> None:
        """End of file is noticed at once when nobody else holds the pipe; a flood by a child is not followed."""
        for _ in range(16):
            if self.at_end or not self._read_once():
                return

    async def _next_change(self, seconds: float) -> bool:
        changed = asyncio.Event()
        self._changed = changed.set
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            return False
        finally:
            self._changed = None
        return True

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._ended.set()
            if self._grown:
                self._budget.left += 1

    async def wait(self) -> None:
        """Returns at end of file, or when it was closed."""
        await self._ended.wait()


class StdinPipe:
    """Bytes for a command's stdin, in order. At most 1 MiB waits here, then a writer has to wait."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._fd = descriptor
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._ending = False
        self._room = asyncio.Event()
        self._room.set()

    async def write(self, data: bytes) -> bool:
        """Returns when less than 1 MiB waits. Returns False for bytes that the program will never read, which are
        dropped."""
        await self._room.wait()
        if self._fd < 0 or self._ending:
            return False
        self._waiting += data
        self._push()
        await self._room.wait()
        return self._fd >= 0

    def end(self) -> None:
        """Ends the file after the bytes that wait."""
        self._ending = True
        if self._fd >= 0:
            self._push()

    def _push(self) -> None:
        try:
            while self._waiting and self._fd >= 0:
                if not self._write_piece():
                    return self._hold_back()
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._push)
            return self._hold_back()
        except OSError:  # EPIPE: nobody can read it any more
            return self.close()
        self._loop.remove_writer(self._fd)
        self._room.set()
        if self._ending:
            self._end_input()
        return None

    def _write_piece(self) -> bool:
        """False when nothing may be written just now; then `_push` is called again. Raises OSError."""
        written = os.write(self._fd, memoryview(self._waiting)[:CHUNK])
        del self._waiting[:written]
        return True

    def _hold_back(self) -> None:
        if len(self._waiting) >= STDIN_BUFFER:
            self._room.clear()
        elif not self._room.is_set():
            self._room.set()

    def _end_input(self) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._waiting.clear()
        self._room.set()
