"""What is new of a stream that is repeated, case by case: at the end, while it comes, and in how much time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from app.backends.boxlite.attach import AttachCut, Chunk, Ended
from app.backends.boxlite.output import OutputReader
from app.backends.boxlite.replay import BACKLOG, CHUNK, Overlap, RecentBytes
from app.core.backend import Logs
from app.core.models import Channel
from app.core.output import OutputLog
from tests.boxlite.rig import everything, new_log, numbers
from tests.processor_time import cost


def tail(data: bytes) -> RecentBytes:
    found = RecentBytes()
    found.add(data)
    return found


@pytest.mark.parametrize(
    ("ours", "held", "known"),
    [
        (b"hello\n", b"hello\n", Overlap(6)),
        (b"hello\n", b"hello\nworld\n", Overlap(6)),
        (b"hello\n", b"hel", Overlap(3)),  # cut in the middle of the repetition
        (numbers(8000), numbers(8000)[4000:] + b"new", Overlap(4000)),
        (numbers(8000), numbers(8000)[4000:4100], Overlap(100)),
        (numbers(8000), b"x" * 100 + numbers(8000)[-800:] + b"new", Overlap(900, has_gap=True)),
        (numbers(8000), b"something else altogether", Overlap(0, has_gap=True)),
        (numbers(8000), numbers(8800)[-810:], Overlap(10, has_gap=True)),  # ten bytes in common: known or by chance
        (b"y\n" * 1000, b"y\n" * 1200, Overlap(2000)),
        (b"a" * 500 + b"b" + b"a" * 99, b"a" * 99 + b"c" * 10, Overlap(99)),
    ],
)
def test_at_the_end(ours: bytes, held: bytes, known: Overlap) -> None:
    repetition = tail(ours).repetition()
    assert (repetition.take(held) or repetition.end()) == known


def test_it_is_known_with_the_last_byte_that_is_repeated() -> None:
    """Who follows a slow program must not wait for 256 KiB of it."""
    stream = numbers(80_000)
    repetition = tail(stream).repetition()
    for begin in range(40_000, 79_000, 1000):
        assert repetition.take(stream[begin : begin + 1000]) is None
    assert repetition.take(stream[79_000:]) == Overlap(40_000)


def test_only_so_much_of_ours_counts_as_a_server_can_repeat() -> None:
    """Else a channel that repeats itself would lose what is new: everything looks like an earlier place."""
    repetition = tail(b"y\n" * BACKLOG).repetition()
    assert repetition.take(b"y\n" * BACKLOG) == Overlap(BACKLOG + CHUNK)


def fibonacci(size: int) -> bytes:
    one, two = b"a", b"ab"
    while len(two) < size:
        one, two = two, two + one
    return two[:size]


def runs(size: int) -> bytes:
    return b"".join(b"a" * n + b"b" for n in range(1, 800))[:size]


FULL = BACKLOG + CHUNK
HOSTILE = {
    "one letter": (b"a" * FULL, b"a" * FULL + b"b"),
    "one letter, then another": (b"a" * (FULL - 1) + b"b", b"a" * (FULL // 2) + b"c" * FULL),
    "a period near the probe": ((b"a" * 63 + b"b") * (FULL // 64), ((b"a" * 63 + b"b") * (FULL // 128)) + b"a" * FULL),
    "half a period": ((b"a" * 64 + b"b") * (FULL // 65), b"a" * 64 + b"b" + b"a" * 64 + b"c" + b"a" * FULL),
    "Fibonacci's word": (fibonacci(FULL), fibonacci(FULL)[1000 : FULL // 2] + b"ba" * 1000 + b"a" * FULL),
    "runs that grow": (runs(FULL), b"a" * FULL),
    "runs that grow, met by a longer one": (runs(FULL), b"a" * 700 + b"b" + b"c" * FULL),
    "random bits": (
        bytes(random.Random(1).choices(b"ab", k=FULL)),
        bytes(random.Random(2).choices(b"ab", k=FULL)),
    ),
}


@pytest.mark.parametrize("size", [7, 1024])
@pytest.mark.parametrize("case", HOSTILE)
def test_no_stream_costs_the_service_its_time(case: str, size: int) -> None:
    """Looked at with every frame, as it comes. Measured: 2 to 60 ms."""
    ours, held = HOSTILE[case]

    def look() -> None:
        repetition = tail(ours).repetition()
        for begin in range(0, min(len(held), FULL), size):
            if repetition.take(held[begin : begin + size]) is not None:
                break
        repetition.end()

    assert cost(look, 2) < 1


# --- with the clock


async def lane(quiet: float, ours: bytes) -> tuple[OutputReader, OutputLog]:
    log = new_log()
    intake = OutputReader(Logs(log, OutputLog(10, exact=False)), quiet)

    async def first() -> AsyncIterator[Chunk | Ended]:
        yield Chunk(Channel.STDOUT, ours)
        raise AttachCut("cut")

    with pytest.raises(AttachCut):
        await intake.take(first())
    intake.begin_socket()
    return intake, log


async def changed(log: OutputLog) -> None:
    there = asyncio.Event()
    log.watch(there.set)
    async with asyncio.timeout(60):
        await there.wait()
    log.unwatch(there.set)


async def test_output_after_a_cut_is_not_held_back_while_a_slow_program_goes_on() -> None:
    """A line every now and then, never quiet for long: it must not take 256 KiB until the first one is shown."""
    ours = b"a line\n" * 20
    intake, log = await lane(60, ours)

    async def live() -> AsyncIterator[Chunk | Ended]:
        yield Chunk(Channel.STDOUT, ours)
        yield Chunk(Channel.STDOUT, b"new\n")
        assert log.total == len(ours) + 4  # at once, by no clock
        yield Ended(0)

    await intake.take(live())
    assert not log.gaps


async def test_what_does_not_go_on_from_ours_is_shown_after_a_moment() -> None:
    intake, log = await lane(0.01, numbers(8000))

    async def live() -> AsyncIterator[Chunk | Ended]:
        yield Chunk(Channel.STDOUT, b"*" * 100)
        await changed(log)
        assert log.total == 8100 and log.gaps == [8000]
        yield Ended(0)

    await intake.take(live())


async def test_a_repetition_that_stops_in_the_middle_is_waited_for() -> None:
    """The network is slow. What comes later is still the repetition."""
    ours = numbers(8000)
    intake, log = await lane(0.001, ours)

    async def live() -> AsyncIterator[Chunk | Ended]:
        yield Chunk(Channel.STDOUT, ours[:5000])
        await asyncio.sleep(0.1)  # a hundred moments
        assert log.total == 8000
        yield Chunk(Channel.STDOUT, ours[5000:])
        yield Chunk(Channel.STDOUT, b"new")
        yield Ended(0)

    await intake.take(live())
    assert everything(log) == ours + b"new" and not log.gaps


async def test_a_channel_that_had_nothing_yet_is_not_held() -> None:
    intake, log = await lane(60, b"")
    intake.begin_socket()

    async def live() -> AsyncIterator[Chunk | Ended]:
        yield Chunk(Channel.STDOUT, b"x")
        assert log.total == 1
        yield Ended(3)

    assert await intake.take(live()) == 3
