"""Followers: what is stored from an offset on, then live; a gap for bytes that were dropped, and one for bytes
that the runtime lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.follow import Follower, OutputGap, OutputPiece
from app.core.models import Channel
from app.core.output import CHUNK, MEMORY_WINDOW, OutputLog
from tests.null_backend import pattern
from tests.unit.core.test_output import RingSpill


def two_logs(capacity: int = 2**20) -> dict[Channel, OutputLog]:
    return {Channel.STDOUT: OutputLog(capacity), Channel.STDERR: OutputLog(capacity)}


FROM_START = {Channel.STDOUT: 0, Channel.STDERR: 0}


async def test_follower_gives_the_channels_in_turn_so_that_neither_starves() -> None:
    logs = two_logs(2**22)
    logs[Channel.STDOUT].append(bytes(3 * CHUNK))
    logs[Channel.STDERR].append(bytes(3 * CHUNK))
    with Follower(logs, FROM_START) as follower:
        seen = [follower.poll() for _ in range(6)]
    assert [item.channel for item in seen if item] == [Channel.STDOUT, Channel.STDERR] * 3


async def test_busy_channel_does_not_starve_the_quiet_one() -> None:
    logs = two_logs()
    with Follower(logs, FROM_START) as follower:
        logs[Channel.STDERR].append(b"one line")
        for step in range(3):
            logs[Channel.STDOUT].append(b"x")
            item = await follower.next()
            assert item is not None
            if item.channel is Channel.STDERR:
                assert step <= 1
                return
    raise AssertionError("stderr was never served")


async def test_follower_waits_for_bytes_and_ends_when_both_are_closed_and_read() -> None:
    logs = two_logs()
    with Follower(logs, FROM_START) as follower:
        waiting = asyncio.create_task(follower.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        logs[Channel.STDERR].append(b"late")
        assert await waiting == OutputPiece(Channel.STDERR, 0, b"late")
        logs[Channel.STDOUT].append(b"last")
        logs[Channel.STDOUT].close()
        assert await follower.next() == OutputPiece(Channel.STDOUT, 0, b"last")
        waiting = asyncio.create_task(follower.next())
        await asyncio.sleep(0)
        assert not waiting.done(), "stderr is still open"
        logs[Channel.STDERR].close()
        assert await waiting is None
        assert await follower.next() is None
    assert not any(log._wakers for log in logs.values())


async def test_follower_from_a_dropped_offset_is_told_the_exact_gap() -> None:
    logs = two_logs(4)
    logs[Channel.STDOUT].append(b"abcdef")
    with Follower(logs, {Channel.STDOUT: 1, Channel.STDERR: 0}) as follower:
        assert follower.poll() == OutputGap(Channel.STDOUT, 1, 2)
        assert follower.poll() == OutputPiece(Channel.STDOUT, 2, b"cdef")
        assert follower.poll() is None


@pytest.mark.parametrize("empty", [False, True])
async def test_follower_is_told_a_gap_when_the_spill_cannot_be_read(empty: bool) -> None:
    ring = RingSpill(2**20, reads=0)
    ring.empty_reads = empty
    log = OutputLog(2**20, open_spill=lambda _: ring)
    log.append(pattern(2**19))
    log.close()
    logs = {Channel.STDOUT: log}
    with Follower(logs, {Channel.STDOUT: 0}) as follower:
        gap = await follower.next()
        assert isinstance(gap, OutputGap)
        assert gap.begin == 0
        rest = b""
        while (item := await follower.next()) is not None:
            assert isinstance(item, OutputPiece)
            rest += item.data
    assert rest == pattern(2**19)[gap.end :]
    assert len(rest) >= MEMORY_WINDOW


# --- gaps: bytes that the runtime lost

OUT = Channel.STDOUT


def has_gap(*pieces: bytes, capacity: int = 2**20) -> dict[Channel, OutputLog]:
    """A closed stdout of these pieces, with a gap after each but the last."""
    log = OutputLog(capacity, exact=False)
    for number, piece in enumerate(pieces):
        if number:
            log.add_gap()
        log.append(piece)
    log.close()
    return {OUT: log}


async def told(logs: dict[Channel, OutputLog], offset: int = 0) -> list[OutputPiece | OutputGap]:
    """All that a reader from `offset` is told until the end."""
    found: list[OutputPiece | OutputGap] = []
    with Follower(logs, {OUT: offset}) as follower:
        while (item := await follower.next()) is not None:
            found.append(item)
    return found


async def test_a_gap_is_a_gap_without_an_end_and_offsets_go_on_there() -> None:
    assert await told(has_gap(b"abc", b"def")) == [
        OutputPiece(OUT, 0, b"abc"),
        OutputGap(OUT, 3, None),
        OutputPiece(OUT, 3, b"def"),
    ]


async def test_gaps_at_the_beginning_and_at_the_end_are_told_too() -> None:
    assert await told(has_gap(b"", b"abc", b"")) == [
        OutputGap(OUT, 0, None),
        OutputPiece(OUT, 0, b"abc"),
        OutputGap(OUT, 3, None),
    ]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (2, [OutputPiece(OUT, 2, b"c"), OutputGap(OUT, 3, None), OutputPiece(OUT, 3, b"def")]),
        (3, [OutputGap(OUT, 3, None), OutputPiece(OUT, 3, b"def")]),
        (4, [OutputPiece(OUT, 4, b"ef")]),
    ],
    ids=["before", "at", "after"],
)
async def test_a_reader_that_resumes_is_told_of_the_gaps_that_are_still_before_it(
    offset: int, expected: list[OutputPiece | OutputGap]
) -> None:
    assert await told(has_gap(b"abc", b"def"), offset) == expected


async def test_each_reader_is_told_of_a_gap_exactly_once() -> None:
    log = OutputLog(2**20, exact=False)
    logs = {OUT: log}
    with Follower(logs, {OUT: 0}) as early:
        log.append(b"abc")
        assert early.poll() == OutputPiece(OUT, 0, b"abc")
        waiting = asyncio.create_task(early.next())
        await asyncio.sleep(0)
        log.add_gap()
        assert await waiting == OutputGap(OUT, 3, None), "a reader that waits is woken by the gap itself"
        assert early.poll() is None
        log.add_gap()
        assert early.poll() is None
        with Follower(logs, {OUT: 3}) as late:
            assert [late.poll(), late.poll()] == [OutputGap(OUT, 3, None), None]
            log.append(b"def")
            assert early.poll() == late.poll() == OutputPiece(OUT, 3, b"def")


async def test_gaps_behind_dropped_bytes_are_part_of_that_gap() -> None:
    logs = has_gap(b"abc", b"def", b"ghi", capacity=4)  # 5 to 9 are kept, the gaps are at 3 and 6
    assert logs[OUT].start == 5
    assert await told(logs) == [
        OutputGap(OUT, 0, 5),
        OutputPiece(OUT, 5, b"f"),
        OutputGap(OUT, 6, None),
        OutputPiece(OUT, 6, b"ghi"),
    ]


async def test_a_gap_where_the_dropped_bytes_end_is_still_told() -> None:
    logs = has_gap(b"abc", b"def", capacity=3)
    assert await told(logs) == [OutputGap(OUT, 0, 3), OutputGap(OUT, 3, None), OutputPiece(OUT, 3, b"def")]


async def test_no_piece_reaches_over_a_gap_though_it_is_stored_in_one() -> None:
    log = has_gap(b"abc", b"def")[OUT]
    assert log.read(0) == b"abcdef"


class Told:
    """A reader of both channels, which holds everything it is told against the model."""

    def __init__(self, logs: dict[Channel, OutputLog], offsets: dict[Channel, int]) -> None:
        self.logs = logs
        self.begin, self.places = dict(offsets), dict(offsets)
        self.follower = Follower(logs, offsets)
        self.lost: dict[Channel, list[int]] = {channel: [] for channel in logs}
        self.gaps: dict[Channel, list[tuple[int, int]]] = {channel: [] for channel in logs}

    def take(self, models: dict[Channel, bytes]) -> bool:
        item = self.follower.poll()
        if item is None:
            return False
        channel, log = item.channel, self.logs[item.channel]
        place, lost = self.places[channel], self.lost[channel]
        if isinstance(item, OutputGap) and item.end is None:
            assert item.begin == place
            assert item.begin in log.gaps
            assert item.begin not in lost, "a gap was told twice"
            lost.append(item.begin)
        elif isinstance(item, OutputGap):
            assert item.end is not None
            assert item.begin == place < item.end == log.start
            self.gaps[channel].append((item.begin, item.end))
            self.places[channel] = item.end
        else:
            assert item.offset == place
            end = place + len(item.data)
            assert item.data == models[channel][place:end] != b""
            assert [h for h in log.gaps if place <= h < end and h not in lost] == [], "a gap was passed over"
            assert [h for h in log.gaps if place < h < end] == [], "a piece reaches over a gap"
            self.places[channel] = end
        return True

    def check(self) -> None:
        """Every gap from the reader's beginning on was told, or lies in bytes that it was told are gone."""
        for channel, log in self.logs.items():
            covered = {h for h in log.gaps for begin, end in self.gaps[channel] if begin <= h < end}
            due = {h for h in log.gaps if h >= self.begin[channel]}
            assert due == set(self.lost[channel]) | covered
            assert self.places[channel] == log.total


@settings(max_examples=300)
@given(
    capacity=st.integers(1, 300),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["append", "append", "lose", "take", "reader"]),
            st.sampled_from(Channel),
            st.integers(0, 200),
        ),
        max_size=60,
    ),
)
def test_follower_delivers_each_channel_in_order_nothing_twice_and_every_gap_once(
    capacity: int, steps: list[tuple[str, Channel, int]]
) -> None:
    logs = two_logs(capacity)
    models = dict.fromkeys(Channel, b"")
    readers = [Told(logs, FROM_START)]
    for action, channel, size in steps:
        if action == "append":
            data = pattern(size, len(models[channel]))
            models[channel] += data
            logs[channel].append(data)
        elif action == "lose":
            logs[channel].add_gap()
        elif action == "take":
            for reader in readers:
                reader.take(models)
        else:
            readers.append(Told(logs, {c: min(size, log.total) for c, log in logs.items()}))
    for reader in readers:
        while reader.take(models):
            pass
        reader.check()
