"""OutputLog: one channel of one execution, with one writer, many readers, byte offsets, bounded memory and a running
digest.

The newest bytes stay in memory. When the output does not fit there, all of it that is kept goes to a spill file. After
`leave_memory` nothing is in memory. A reader is only an offset. It never delays the writer, and gets a gap for bytes
that are gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

CHUNK = 64 * 1024
MEMORY_WINDOW = 256 * 1024
# Below this a chunk is appended to the one before it: a program that prints byte by byte must not cost an object each.
SMALL = 8 * 1024
MOST_GAPS = 1024  # a stream that breaks more often has no reader who wants to know


class Spill(Protocol):
    """Stores the last bytes of a log outside of memory, from `start` on. Reading and writing raise OSError."""

    start: int  # moves when the oldest bytes had to make room, after `seal` perhaps all of them

    def write(self, offset: int, data: bytes) -> None: ...
    def read(self, offset: int, size: int) -> bytes: ...
    def seal(self) -> None: ...
    def close(self) -> None: ...


class SandboxSpill(Protocol):
    """The place where one sandbox stores output."""

    def check(self) -> None:
        """Raises CapacityExceeded when there is no room for another execution."""

    def open(self, capacity: int) -> Spill:
        """Opens a spill for one log. Raises OSError."""


class OutputLog:
    """`capacity` bytes are kept: the last ones, or with `keep_first` the first ones. If it is not `exact`, the runtime
    may have lost bytes before they got here, and nobody knows how many are missing.

    >>> log = OutputLog(4)
    >>> log.append(b"abcdef"), log.total, log.start, log.read(2, 10)
    (6, 6, 2, b'cdef')
    """

    def __init__(
        self,
        capacity: int,
        *,
        keep_first: bool = False,
        exact: bool = True,
        open_spill: Callable[[int], Spill] | None = None,
    ) -> None:
        self.capacity = capacity
        self.keep_first = keep_first
        self.exact = exact
        self.gaps: list[int] = []  # offsets at which the runtime is known to have lost bytes
        self.total = 0
        self._start = 0
        self.closed = False
        self.overflowed = False
        self._digest = hashlib.sha256()
        self._open_spill = open_spill
        self._spill: Spill | None = None
        self._chunks: list[bytes] = []
        self._memory_start = 0
        self._wakers: set[Callable[[], None]] = set()

    # --- the writer's side

    def append(self, data: bytes) -> int:
        """Adds `data`. Returns how many bytes were accepted (fewer only with `keep_first`)."""
        if self.closed:
            return 0
        if self.keep_first and self.total + len(data) > self.capacity:
            self.overflowed = True
            data = data[: self.capacity - self.total]
        for begin in range(0, len(data), CHUNK):  # piece by piece: what one append costs in memory is bounded too
            piece = data[begin : begin + CHUNK]
            self._digest.update(piece)
            self._remember(piece)
            self.total += len(piece)
            self._trim(piece)
        for wake in tuple(self._wakers):
            wake()
        return len(data)

    def mark_inexact(self) -> None:
        """The runtime may lose output unnoticed: said before any output comes."""
        self.exact = False

    def add_gap(self) -> None:
        """Records that bytes are missing here, and that nobody knows how many."""
        if not self.closed and self.total not in self.gaps[-1:] and len(self.gaps) < MOST_GAPS:
            self.gaps.append(self.total)
            for wake in tuple(self._wakers):
                wake()

    def close(self) -> None:
        """Ends the log: no more bytes can come, and readers at the end learn this. Idempotent."""
        if self._spill is not None and not self.closed:
            self._spill.seal()
        self.closed = True
        for wake in tuple(self._wakers):
            wake()

    def discard(self) -> None:
        """Drops the stored bytes. Counts and digest stay."""
        self.close()
        self._chunks.clear()
        self._memory_start = self.total
        self._lose_spill()

    def leave_memory(self) -> None:
        """Call it after `close`: what is kept moves to the spill. What the spill does not take is dropped."""
        if self._spill is None and self._chunks:
            self._begin_spill()
            if self._spill is not None:
                self._spill.seal()
        self._chunks.clear()
        self._memory_start = self.total
        if self._spill is None:
            self._start = self.total

    def _remember(self, data: bytes) -> None:
        last = self._chunks[-1] if self._chunks else b""
        if self._chunks and len(data) < SMALL and len(last) + len(data) <= CHUNK:
            self._chunks[-1] = last + data
        else:
            self._chunks.append(data)

    def _trim(self, data: bytes) -> None:
        in_memory = self.total - self._memory_start
        if self._spill is not None or (in_memory > MEMORY_WINDOW and self.capacity > MEMORY_WINDOW):
            self._to_spill(data)
        room = min(self.capacity, MEMORY_WINDOW)
        while len(self._chunks) > 1 and self.total - self._memory_start - len(self._chunks[0]) >= room:
            self._memory_start += len(self._chunks.pop(0))
        kept_from = (
            self.total - self.capacity
            if self._spill is not None
            else max(self._memory_start, self.total - self.capacity)
        )
        self._start = max(self._start, kept_from)

    def _to_spill(self, data: bytes) -> None:
        if self._spill is None:
            self._begin_spill()
            return
        try:
            self._spill.write(self.total - len(data), data)
        except OSError:
            self._lose_spill()

    def _begin_spill(self) -> None:
        if self._open_spill is None:
            return
        try:
            self._spill = self._open_spill(self.capacity)
            offset = self._memory_start
            for chunk in self._chunks:
                piece = chunk[-self.capacity :]
                self._spill.write(offset + len(chunk) - len(piece), piece)
                offset += len(chunk)
        except OSError:
            self._lose_spill()

    # --- the readers' side

    @property
    def start(self) -> int:
        """Offset of the first stored byte."""
        if self._spill is None:
            return self._start
        return max(self._start, min(self._spill.start, self._memory_start))

    @property
    def spilled(self) -> bool:
        return self._spill is not None

    @property
    def in_memory(self) -> int:
        """Bytes."""
        return self.total - self._memory_start

    @property
    def dropped(self) -> int | None:
        """Bytes of the channel that are not stored, or not any more. None where the runtime has lost some, or may have
        unnoticed."""
        return self.start if self.exact and not self.gaps else None

    @property
    def sha256(self) -> str:
        """Digest of all bytes that were added, dropped ones included."""
        return self._digest.hexdigest()

    def read(self, offset: int, limit: int = CHUNK) -> bytes:
        """Returns at most `limit` stored bytes from `offset`, which must be at least `start`. Returns b"" at the end,
        and when the spill cannot be read: then `start` has moved beyond `offset`."""
        if offset < self.start:
            raise ValueError(f"offset {offset} is before the first stored byte {self.start}")
        if offset >= self.total or limit <= 0:
            return b""
        if offset >= self._memory_start or self._spill is None:
            return self._from_memory(offset, limit)
        try:
            data = self._spill.read(offset, min(limit, self._memory_start - offset))
        except OSError:
            data = b""
        if not data:  # cut short by somebody else counts as unreadable: a reader must not wait for it for ever
            self._lose_spill()
        return data

    def _lose_spill(self) -> None:
        """The disk is full or gone, so only memory is left. `start`, and so `dropped`, says what is missing."""
        if self._spill is not None:
            self._spill.close()
        self._spill = self._open_spill = None
        self._start = max(self._start, self._memory_start)

    def _from_memory(self, offset: int, limit: int) -> bytes:
        end = self.total
        for chunk in reversed(self._chunks):  # a live reader is at the last or last but one
            begin = end - len(chunk)
            if offset >= begin:
                if offset == begin and len(chunk) <= limit:
                    return chunk
                return chunk[offset - begin : offset - begin + limit]
            end = begin
        raise AssertionError("offset below the memory window")

    def watch(self, wake: Callable[[], None]) -> None:
        """Calls `wake` after every change, until `unwatch`."""
        self._wakers.add(wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        self._wakers.discard(wake)
