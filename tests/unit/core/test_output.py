"""OutputLog against a model: one bytes object, of which a reader may be told less, but never anything else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.output import CHUNK, MEMORY_WINDOW, MOST_GAPS, OutputLog
from tests.null_backend import pattern


class RingSpill:
    """A ring of `capacity` bytes; fails from the given call on. `make_room` is what its sandbox may do once it is
    sealed."""

    def __init__(self, capacity: int, *, writes: int | None = None, reads: int | None = None) -> None:
        self.ring = bytearray(capacity)
        self.capacity = capacity
        self.writes, self.reads = writes, reads
        self.empty_reads = self.sealed = False
        self.closed = 0
        self.start = self.end = 0

    def write(self, offset: int, data: bytes) -> None:
        assert not self.closed
        if self.writes is not None:
            if self.writes == 0:
                raise OSError(28, "No space left on device")
            self.writes -= 1
        assert len(data) <= self.capacity, "a ring cannot take more than itself"
        assert not self.sealed
        self.end = offset + len(data)
        self.start = max(self.start, self.end - self.capacity)
        at = offset % self.capacity
        first = min(len(data), self.capacity - at)
        self.ring[at : at + first] = data[:first]
        self.ring[: len(data) - first] = data[first:]

    def read(self, offset: int, size: int) -> bytes:
        assert not self.closed
        if self.reads is not None:
            if self.reads == 0:
                if self.empty_reads:
                    return b""
                raise OSError(5, "Input/output error")
            self.reads -= 1
        at = offset % self.capacity
        return bytes(self.ring[at : min(at + size, self.capacity)])

    def seal(self) -> None:
        self.sealed = True

    def make_room(self) -> None:
        if self.sealed:
            self.start = self.end

    def close(self) -> None:
        self.closed += 1


def in_memory(log: OutputLog) -> int:
    return sum(len(chunk) for chunk in log._chunks)


class Reader:
    """Reads as a Follower does, and holds everything it was told against the model."""

    def __init__(self, log: OutputLog, offset: int) -> None:
        self.log, self.offset = log, offset

    def step(self, model: bytes, limit: int) -> bool:
        if self.offset < self.log.start:
            assert self.log.start <= len(model)
            self.offset = self.log.start
            return True
        data = self.log.read(self.offset, limit)
        assert len(data) <= limit
        assert data == model[self.offset : self.offset + len(data)]
        self.offset += len(data)
        return bool(data) or self.offset < self.log.start


sizes = st.one_of(st.integers(0, 64), st.integers(0, 3 * CHUNK), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2**20]))
actions = st.one_of(
    st.tuples(st.just("append"), sizes),
    st.tuples(st.just("append"), sizes),
    st.tuples(st.just("read"), st.integers(1, 2 * CHUNK)),
    st.tuples(st.just("reader"), st.integers(0, 2**21)),
    st.tuples(st.just("close"), st.just(0)),
    st.tuples(st.just("leave"), st.just(0)),
    st.tuples(st.just("room"), st.just(0)),
    st.tuples(st.just("discard"), st.just(0)),
)
capacities = st.one_of(
    st.integers(1, 100),
    st.integers(1, 4 * MEMORY_WINDOW),
    st.sampled_from([CHUNK, MEMORY_WINDOW - 1, MEMORY_WINDOW, MEMORY_WINDOW + 1]),
)


@settings(max_examples=400)
@given(
    capacity=capacities,
    keep_first=st.booleans(),
    spill=st.sampled_from(["off", "on", "refused"]),
    writes=st.one_of(st.none(), st.integers(0, 20)),
    reads=st.one_of(st.none(), st.integers(0, 10)),
    empty_reads=st.booleans(),
    steps=st.lists(actions, max_size=40),
)
def test_readers_get_every_byte_once_or_an_exact_gap(
    capacity: int,
    keep_first: bool,
    spill: str,
    writes: int | None,
    reads: int | None,
    empty_reads: bool,
    steps: list[tuple[str, int]],
) -> None:
    rings: list[RingSpill] = []

    def open_spill(size: int) -> RingSpill:
        if spill == "refused":
            raise OSError(13, "Permission denied")
        rings.append(RingSpill(size, writes=writes, reads=reads))
        rings[-1].empty_reads = empty_reads
        return rings[-1]

    log = OutputLog(capacity, keep_first=keep_first, open_spill=None if spill == "off" else open_spill)
    model = b""
    readers = [Reader(log, 0)]
    closed = discarded = left = False
    for action, size in steps:
        start = log.start
        if action == "append":
            data = pattern(size, len(model))
            taken = log.append(data)
            room = capacity - len(model) if keep_first else size
            assert taken == (0 if closed else min(size, room))
            assert log.overflowed or not (keep_first and not closed and size > room)
            model += data[:taken]
        elif action == "read":
            for reader in readers:
                reader.step(model, size)
        elif action == "reader":
            readers.append(Reader(log, min(size, log.total)))
        elif action == "close":
            log.close()
            closed = True
        elif action == "leave":
            log.close()
            log.leave_memory()
            assert in_memory(log) == log.in_memory == 0
            closed = left = True
        elif action == "room":
            for ring in rings:
                ring.make_room()
                discarded = discarded or (ring.sealed and left)
        else:
            log.discard()
            closed = discarded = True
        assert log.total == len(model)
        assert start <= log.start <= log.total
        assert log.dropped == log.start
        assert log.closed is closed
        assert log.in_memory == in_memory(log) <= min(capacity, MEMORY_WINDOW) + CHUNK
        healthy = spill == "on" and writes is None and reads is None
        most = capacity if healthy else 0 if left else min(capacity, MEMORY_WINDOW)
        kept = 0 if discarded else min(len(model), most)
        assert log.total - log.start >= kept, "bytes within the capacity are gone"
        assert log.total - log.start <= capacity
    assert log.sha256 == hashlib.sha256(model).hexdigest()
    for reader in readers:
        while reader.step(model, CHUNK):
            pass
        assert reader.offset == log.total, "a reader is stuck before the end"
    log.discard()
    assert in_memory(log) == 0
    assert len(rings) <= 1
    assert all(ring.closed == 1 for ring in rings), "a spill was not given back, or twice"


@given(pieces=st.lists(st.integers(0, 2000), max_size=100))
def test_many_small_appends_cost_few_objects(pieces: list[int]) -> None:
    log = OutputLog(2**20)
    for size in pieces:
        log.append(b"x" * size)
    assert len(log._chunks) <= 1 + sum(pieces) // (CHUNK - 2000)


def test_one_huge_append_is_bounded_in_memory() -> None:
    log = OutputLog(2**26)
    log.append(bytes(10 * 2**20))
    assert in_memory(log) <= MEMORY_WINDOW + CHUNK


def test_keep_first_tells_its_overflow_once_it_happened_and_not_before() -> None:
    log = OutputLog(4, keep_first=True)
    log.append(b"abcd")
    assert not log.overflowed
    assert log.append(b"e") == 0
    assert (log.overflowed, log.total, log.read(0)) == (True, 4, b"abcd")


def test_reading_what_was_dropped_is_an_error_and_not_other_bytes() -> None:
    log = OutputLog(4)
    log.append(b"abcdef")
    with pytest.raises(ValueError, match="before the first stored byte 2"):
        log.read(1)
    assert log.read(2) == b"cdef"


def test_after_discard_counts_and_digest_stay() -> None:
    log = OutputLog(10)
    log.append(b"abc")
    log.discard()
    assert (log.total, log.start, log.closed, log.read(3)) == (3, 3, True, b"")
    assert log.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert log.append(b"d") == 0


def test_a_log_that_is_not_exact_cannot_tell_what_was_dropped() -> None:
    for exact, dropped in ((True, 2), (False, None)):
        log = OutputLog(4, exact=exact)
        log.append(b"abcdef")
        assert (log.total, log.start, log.dropped) == (6, 2, dropped)


def test_a_gap_is_an_offset_once_however_often_it_is_torn() -> None:
    log = OutputLog(100)
    log.add_gap()
    log.append(b"abc")
    log.add_gap()
    log.add_gap()
    log.append(b"d")
    log.add_gap()
    assert log.gaps == [0, 3, 4]
    assert (log.total, log.read(0), log.sha256) == (4, b"abcd", hashlib.sha256(b"abcd").hexdigest())


def test_gaps_are_bounded_and_none_comes_after_the_end() -> None:
    log = OutputLog(10)
    for _ in range(MOST_GAPS + 10):
        log.append(b"x")
        log.add_gap()
    assert log.gaps == list(range(1, MOST_GAPS + 1))
    closed = OutputLog(10)
    closed.close()
    closed.add_gap()
    assert closed.gaps == []


def test_watchers_are_told_of_appends_gaps_and_the_end_until_they_leave() -> None:
    log = OutputLog(10)
    told: list[int] = []

    def wake() -> None:
        told.append(log.total)

    log.watch(wake)
    log.append(b"ab")
    log.add_gap()
    log.add_gap()  # the same gap
    log.close()
    log.unwatch(wake)
    log.close()
    assert told == [2, 2, 2]


def test_a_watcher_may_leave_while_it_is_told() -> None:
    log = OutputLog(10)
    wakers: list[Callable[[], None]] = []

    def leave() -> None:
        for wake in wakers:
            log.unwatch(wake)

    for _ in range(3):
        wakers.append(lambda: leave())
        log.watch(wakers[-1])
    log.append(b"a")
    assert not log._wakers
