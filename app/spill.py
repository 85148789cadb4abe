"""Output that does not stay in memory: one unnamed file of blocks for each sandbox, within one budget for all.

An unnamed file (O_TMPFILE) disappears with its last descriptor, however the process ends, so nothing is left over.
Output of ended executions makes room for newer output of the same sandbox, and never for that of another one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from app.core.budget import Budget
from app.core.limits import MIB

BLOCK = 4096  # what a file system gives the smallest output
GROWTH = 16  # blocks that a file grows by: one chunk
INLINE = 8 * MIB  # of a file that is closed at once


class SpillFolder:
    """Makes the files of sandboxes. `size` is the bytes of all of them together. With 0 nothing is stored. The folder
    is held open, so that an unprivileged process can use it later, wherever it is. `on_failure` gets the sandbox's id
    and the disk's error where one of its files cannot be made, written or read. Raises OSError."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.on_failure: Callable[[str, OSError], None] = lambda _, __: None
        self.budget = Budget("MiB of stored output", size, "sandbox", retry_seconds=10, unit=MIB)

    def of(self, sandbox_id: str) -> SpillFile:
        return SpillFile(self, sandbox_id)

    def descriptor(self) -> int:
        """Opens a new file and returns its descriptor. Raises OSError."""
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._folder)

    def prove(self) -> None:
        """Raises OSError when no file can be made. Otherwise output would be dropped although nobody asked for it."""
        os.close(self.descriptor())

    def close(self) -> None:
        os.close(self._folder)


class SpillFile:
    """The file of one sandbox. It exists from the sandbox's first stored output to the end of its last, and takes one
    descriptor for all of them. Its size counts for the sandbox until then."""

    def __init__(self, folder: SpillFolder, sandbox_id: str) -> None:
        self._folder, self._budget, self._holder = folder, folder.budget, sandbox_id
        self._fd, self._size = -1, 0  # of the file, in blocks
        self._free: list[int] = []
        self._open: set[SpilledOutput] = set()
        self._sealed: dict[SpilledOutput, None] = {}  # in the order of their ends

    @property
    def fd(self) -> int:
        return self._fd

    def check(self) -> None:
        """Raises CapacityExceeded when a new execution could store nothing. So the execution is refused, and its output
        is not cut."""
        if self._budget.size and not self._free and not self._sealed:
            self._budget.check(self._holder, GROWTH * BLOCK)

    def open(self, capacity: int) -> SpilledOutput:
        """Opens a store for the last `capacity` bytes of one log. Raises OSError."""
        if self._fd < 0:
            with self.reported():
                self._fd = self._folder.descriptor()
        output = SpilledOutput(self, capacity)
        self._open.add(output)
        return output

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Reports the disk's error, and raises it. A budget that is used up is no error of the disk."""
        try:
            yield
        except OSError as error:
            self._folder.on_failure(self._holder, error)
            raise

    def allocate(self, count: int) -> list[int]:
        """Returns as many blocks as this sandbox may have, at most `count`: free ones, then new ones, then those of the
        output that ended first."""
        found: list[int] = []
        while len(found) < count:
            if self._free:
                found.append(self._free.pop())
            elif self._budget.fits(self._holder, GROWTH * BLOCK):
                self._budget.take(self._holder, GROWTH * BLOCK)
                self.release(range(self._size, self._size + GROWTH))
                self._size += GROWTH
            elif self._sealed:
                next(iter(self._sealed)).forget()
            else:
                break
        return found

    def release(self, blocks: range | array[int]) -> None:
        """Gives blocks back. The first of them is used again first, so that neighbouring blocks stay together."""
        self._free.extend(reversed(blocks))

    def seal(self, output: SpilledOutput) -> None:
        self._sealed[output] = None

    def unseal(self, output: SpilledOutput) -> None:
        self._sealed.pop(output, None)

    def close(self, output: SpilledOutput) -> None:
        self._open.discard(output)
        if not self._open and self._fd >= 0:
            _close(self._fd, self._size * BLOCK)
            self._budget.give_back(self._holder, self._size * BLOCK)
            self._fd, self._size = -1, 0
            self._free.clear()


class SpilledOutput:
    """The bytes of one log from `start` on, at most `capacity`, in blocks of its sandbox's file. It may have to drop
    its oldest bytes: then `start` moves."""

    def __init__(self, file: SpillFile, capacity: int) -> None:
        self._file, self._capacity = file, capacity
        self._blocks = array("I")
        self._first = 0  # number of the first block, counted from offset 0
        self.start = self._end = 0

    def write(self, offset: int, data: bytes) -> None:
        """Appends `data`, which is at most `capacity` long. Raises OSError: ENOSPC when the sandbox has no room for it,
        as a full disk would."""
        if not self._blocks:
            self.start = self._end = offset
            self._first = offset // BLOCK
        end = offset + len(data)
        self._forget_before(end - self._capacity)
        missing = -(-end // BLOCK) - self._first - len(self._blocks)
        if missing > 0:
            self._blocks.extend(self._take(missing))
        self._end = end
        view = memoryview(data)
        with self._file.reported():
            for position, length in self._places(offset, len(data)):
                _write_at(self._file.fd, position, view[:length])
                view = view[length:]

    def _take(self, count: int) -> list[int]:
        """So many blocks, of its own oldest ones where there are no others. Raises OSError."""
        found = self._file.allocate(count)
        own = count - len(found)
        if own and len(self._blocks) <= own:  # the last one is being written to
            self._file.release(array("I", found))
            raise OSError(errno.ENOSPC, "the budget for stored output is used up")
        found.extend(self._blocks[:own])
        del self._blocks[:own]
        self._first += own
        self.start = max(self.start, self._first * BLOCK)
        return found

    def _forget_before(self, offset: int) -> None:
        self.start = max(self.start, offset)
        count = self.start // BLOCK - self._first
        if count > 0 and self._blocks:
            self._file.release(self._blocks[:count])
            del self._blocks[:count]
            self._first += count

    def _places(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Where the bytes lie in the file: positions and lengths, of blocks in a row together."""
        end = offset + size
        while offset < end:
            index, within = offset // BLOCK - self._first, offset % BLOCK
            position, length = self._blocks[index] * BLOCK + within, BLOCK - within
            while offset + length < end and self._blocks[index + 1] == self._blocks[index] + 1:
                index, length = index + 1, length + BLOCK
            length = min(length, end - offset)
            yield position, length
            offset += length

    def read(self, offset: int, size: int) -> bytes:
        """Reads stored bytes only. Raises OSError. Returns less if somebody has cut the file."""
        pieces: list[bytes] = []
        with self._file.reported():
            for position, length in self._places(offset, min(size, self._end - offset)):
                pieces.append(os.pread(self._file.fd, length, position))
                if len(pieces[-1]) < length:
                    break
        return b"".join(pieces)

    def seal(self) -> None:
        """Called when nothing more is written. From now on the output makes room when its sandbox needs it."""
        self._file.seal(self)

    def forget(self) -> None:
        self._file.unseal(self)
        self._file.release(self._blocks)
        self._blocks = array("I")
        self.start = self._end

    def close(self) -> None:
        self.forget()
        self._file.close(self)


def _close(descriptor: int, size: int) -> None:
    """To give the pages of a GiB back takes the kernel some 80 ms: too long for an event loop."""
    if size <= INLINE:
        os.close(descriptor)
    else:
        threading.Thread(target=os.close, args=(descriptor,), name="close a spill file").start()


def _write_at(descriptor: int, position: int, view: memoryview) -> None:
    while view:
        written = os.pwrite(descriptor, view, position)
        position, view = position + written, view[written:]
