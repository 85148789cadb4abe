"""OutputLog: one channel of one execution. One writer, many readers, byte offsets, bounded memory, running digest.

The newest bytes stay in memory, all that is kept is in a spill file once it does not fit there. A reader is only an
offset: it never holds the writer up, and what it finds gone it is told as a gap.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.core.models import Channel

CHUNK = 64 * 1024
MEMORY_WINDOW = 256 * 1024
# Below this a chunk is appended to the one before it: a program that prints byte by byte must not cost an object each.
SMALL = 8 * 1024


class Spill(Protocol):
    """A ring of `capacity` bytes somewhere else. Both raise OSError."""

    def write(self, offset: int, data: bytes) -> None: ...
    def read(self, offset: int, size: int) -> bytes: ...
    def close(self) -> None: ...


class OutputLog:
    """`capacity` bytes are kept: the last ones, or with `keep_first` the first ones.

    >>> log = OutputLog(4)
    >>> log.append(b"abcdef"), log.total, log.start, log.read(2, 10)
    (6, 6, 2, b'cdef')
    """

    def __init__(
        self,
        capacity: int,
        *,
        keep_first: bool = False,
        open_spill: Callable[[int], Spill] | None = None,
    ) -> None:
        self.capacity = capacity
        self.keep_first = keep_first
        self.total = 0
        self.start = 0
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
        """Takes `data` in; returns how many bytes were accepted (fewer only with `keep_first`)."""
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

    def close(self) -> None:
        """No more bytes can come; readers that are at the end are told so. Idempotent."""
        self.closed = True
        for wake in tuple(self._wakers):
            wake()

    def discard(self) -> None:
        """Gives the stored bytes back; counts and digest stay."""
        self.close()
        self._chunks.clear()
        self.start = self._memory_start = self.total
        if self._spill is not None:
            self._spill.close()
            self._spill = None

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
        self.start = max(self.start, kept_from)

    def _to_spill(self, data: bytes) -> None:
        try:
            if self._spill is None:
                if self._open_spill is None:
                    return
                self._spill = self._open_spill(self.capacity)
                offset = self._memory_start
                for chunk in self._chunks:
                    self._spill.write(offset, chunk)
                    offset += len(chunk)
            else:
                self._spill.write(self.total - len(data), data)
        except OSError:
            self._lose_spill()

    # --- the readers' side

    @property
    def dropped(self) -> int:
        """Bytes that were taken in and are no longer stored."""
        return self.start

    @property
    def sha256(self) -> str:
        """Digest of every byte that was taken in, dropped ones included."""
        return self._digest.hexdigest()

    def read(self, offset: int, limit: int = CHUNK) -> bytes:
        """At most `limit` stored bytes from `offset`, which must be at least `start`; b"" at the end, and when the
        spill cannot be read: then `start` has moved beyond `offset`."""
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
        """The disk is full or gone: only memory is left, and `start` (so `dropped`) says what is missing."""
        if self._spill is not None:
            self._spill.close()
        self._spill = self._open_spill = None
        self.start = max(self.start, self._memory_start)

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


@dataclass(frozen=True, slots=True)
class Output:
    channel: Channel
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes from `begin` up to, not including, `end` are no longer stored."""

    channel: Channel
    begin: int
    end: int


class Follower:
    """One reader of both channels: first what is stored from the given offsets, then live, then None for the end."""

    def __init__(self, logs: dict[Channel, OutputLog], offsets: dict[Channel, int]) -> None:
        self.offsets = dict(offsets)
        self._logs = logs
        self._changed = asyncio.Event()
        self._turn = 0

    def __enter__(self) -> Follower:
        for log in self._logs.values():
            log.watch(self._changed.set)
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._logs.values():
            log.unwatch(self._changed.set)

    def poll(self) -> Output | Gap | None:
        """What is there now, channels in turn so that neither starves the other; None when there is nothing."""
        channels = tuple(self._logs)
        for step in range(len(channels)):
            channel = channels[(self._turn + step) % len(channels)]
            item = self._next_of(channel)
            if item is not None:
                self._turn = (self._turn + step + 1) % len(channels)
                return item
        return None

    def _next_of(self, channel: Channel) -> Output | Gap | None:
        log, offset = self._logs[channel], self.offsets[channel]
        if offset < log.start:
            self.offsets[channel] = log.start
            return Gap(channel, offset, log.start)
        data = log.read(offset)
        if data:
            self.offsets[channel] = offset + len(data)
            return Output(channel, offset, data)
        return self._next_of(channel) if offset < log.start else None

    async def next(self) -> Output | Gap | None:
        """The next piece, as soon as there is one; None when both channels are closed and read to their end."""
        while True:
            self._changed.clear()
            item = self.poll()
            if item is not None:
                return item
            if all(log.closed for log in self._logs.values()):
                return None
            await self._changed.wait()
