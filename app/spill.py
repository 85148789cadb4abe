"""Output that does not fit into memory: unnamed files in one folder, within one budget for all.

An unnamed file (O_TMPFILE) is gone with its last descriptor, whatever ends the process, so nothing can be left over.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from app.core.errors import CapacityExceeded

MIB = 1024 * 1024


class SpillFolder:
    """Opens spill files and counts what they hold. `budget` in bytes. The folder is held open: an unprivileged process
    may use it later, wherever it lies. Raises OSError."""

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._budget, self.used = budget, 0

    def check(self) -> None:
        """Raises CapacityExceeded when nothing is left, so that a new execution is refused rather than cut short."""
        if self.used >= self._budget:
            raise CapacityExceeded("MiB of stored output", self._budget // MIB, 10)

    def open(self, capacity: int) -> SpillFile:
        """Raises OSError."""
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        return SpillFile(self, os.open(".", flags, 0o600, dir_fd=self._folder), capacity)

    def prove(self) -> None:
        """Raises OSError when no file can be made: output would be dropped without anybody having asked for it."""
        self.open(1).close()

    def close(self) -> None:
        os.close(self._folder)

    def take(self, size: int) -> None:
        """Raises OSError(ENOSPC), as a full disk would."""
        if self.used + size > self._budget:
            raise OSError(errno.ENOSPC, "the budget for stored output is used up")
        self.used += size

    def give_back(self, size: int) -> None:
        self.used -= size


class SpillFile:
    """A ring of `capacity` bytes: the byte at offset n lies at n modulo capacity."""

    def __init__(self, folder: SpillFolder, descriptor: int, capacity: int) -> None:
        self._folder, self._fd, self._capacity = folder, descriptor, capacity
        self._size = 0

    def write(self, offset: int, data: bytes) -> None:
        """`data` is at most `capacity` long and goes where the byte before it ended. Raises OSError."""
        end = min(offset + len(data), self._capacity)
        if end > self._size:
            self._folder.take(end - self._size)
            self._size = end
        at = offset % self._capacity
        view = memoryview(data)
        first = self._capacity - at
        self._write_at(at, view[:first])
        if len(view) > first:
            self._write_at(0, view[first:])

    def _write_at(self, at: int, view: memoryview) -> None:
        while view:
            written = os.pwrite(self._fd, view, at)
            at, view = at + written, view[written:]

    def read(self, offset: int, size: int) -> bytes:
        """Raises OSError. The caller asks only for what is stored."""
        at = offset % self._capacity
        return os.pread(self._fd, min(size, self._capacity - at), at)

    def close(self) -> None:
        os.close(self._fd)
        self._folder.give_back(self._size)
        self._size = 0
