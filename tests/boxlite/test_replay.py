"""What is new of a stream that is repeated: for any stream, any chunks, any cuts, and a server with 256 KiB of backlog.

The server is a model here, of the one rule that counts: an attach repeats the newest whole chunks that fit into its
backlog, from their start, and goes on live.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from app.backends.boxlite.attach import AttachCut, Chunk, Ended
from app.backends.boxlite.output import OutputReader
from app.backends.boxlite.replay import BACKLOG
from app.core.backend import Logs
from app.core.models import Channel
from app.core.output import OutputLog
from tests.boxlite.rig import everything, new_log, numbers


@dataclass
class Model:
    """`at`: so many chunks have been printed. `late`: some of them had fallen out of the backlog before the first one
    was seen, of which nobody can know."""

    chunks: list[bytes]
    at: int = 0
    late: bool = False
    log: OutputLog = field(default_factory=new_log)

    def __post_init__(self) -> None:
        self.intake = OutputReader(Logs(self.log, OutputLog(10, exact=False)), quiet=60)

    @property
    def out(self) -> bytes:
        return everything(self.log)

    def backlog(self) -> list[bytes]:
        begin, size = self.at, 0
        while begin and (size + len(self.chunks[begin - 1]) <= BACKLOG or not size):
            begin -= 1
            size += len(self.chunks[begin])
        return self.chunks[begin : self.at]

    async def socket(self, *, live: int, most: int | None = None, lost: frozenset[int] = frozenset()) -> None:
        """One attach: the backlog and `live` chunks more, at most `most` of them all, and then the cut; the exit when
        everything has been sent. `lost`: of the live ones, because the reader was busy."""
        self.intake.begin_socket()
        frames = self.backlog()
        if self.log.total == 0:
            self.late = bool(frames) and frames[0] is not self.chunks[0]
        fresh = self.chunks[self.at : self.at + live]
        frames += [chunk for place, chunk in enumerate(fresh) if place not in lost]
        self.at += len(fresh)
        over = self.at == len(self.chunks) and (most is None or most >= len(frames))

        async def send() -> AsyncIterator[Chunk | Ended]:
            for chunk in frames[:most]:
                yield Chunk(Channel.STDOUT, chunk)
            if not over:
                raise AttachCut("cut")
            yield Ended(0)

        try:
            await self.intake.take(send())
        except AttachCut:
            return


def cut_up(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    chunks, place, turn = [], 0, 0
    while place < len(stream):
        size = sizes[turn % len(sizes)]
        chunks.append(stream[place : place + size])
        place, turn = place + size, turn + 1
    return chunks


@st.composite
def cuts(draw: st.DrawFn) -> list[tuple[int, int, int | None]]:
    """(printed while nobody is attached, printed while attached, frames until the cut)"""
    few = st.integers(0, 40)
    return draw(
        st.lists(
            st.tuples(few | st.integers(0, 600), few | st.integers(0, 400), st.none() | few | st.integers(0, 400)),
            max_size=8,
        )
    )


async def follow(model: Model, story: list[tuple[int, int, int | None]]) -> None:
    for alone, live, most in story:
        model.at = min(model.at + alone, len(model.chunks))
        await model.socket(live=live, most=most)
    await model.socket(live=len(model.chunks))


def pieces_of(log: OutputLog) -> list[bytes]:
    stream = everything(log)
    edges = [0, *log.gaps, log.total]
    return [stream[begin:end] for begin, end in pairwise(edges) if end > begin]


SIZES = st.lists(st.integers(1, 1024), min_size=1, max_size=8)


@settings(max_examples=60)
@given(st.integers(0, 1_200), SIZES | st.just([1024]), cuts())
def test_what_comes_is_the_stream_with_at_most_gaps_and_no_byte_twice(
    count: int, sizes: list[int], story: list[tuple[int, int, int | None]]
) -> None:
    stream = numbers(sum(sizes[turn % len(sizes)] for turn in range(count)))
    model = Model(cut_up(stream, sizes))
    asyncio.run(follow(model, story))
    place = 0
    for piece in pieces_of(model.log):
        found = stream.find(piece, place)
        assert found >= 0, "a piece is no part of the stream, or was there before"
        place = found + len(piece)
    if not model.log.gaps:
        assert stream.endswith(model.out) and (model.late or model.out == stream)
    assert model.out[-8:] == stream[-8:]


WORDS = st.binary(min_size=1, max_size=3) | st.sampled_from([b"y\n", b"aaaaab", b"ab" * 40 + b"c", b"0123456789" * 13])


@settings(max_examples=30)
@given(WORDS, st.integers(0, BACKLOG // 2), st.lists(st.integers(100, 1024), min_size=1, max_size=10), cuts())
def test_a_stream_that_fits_the_backlog_is_whole_however_much_it_repeats_itself(
    word: bytes, timeouts: int, sizes: list[int], story: list[tuple[int, int, int | None]]
) -> None:
    stream = (word * timeouts)[:BACKLOG]
    model = Model(cut_up(stream, sizes))
    asyncio.run(follow(model, story))
    assert model.out == stream and not model.log.gaps


@settings(max_examples=20)
@given(WORDS, st.integers(BACKLOG, 3 * BACKLOG), st.lists(st.integers(200, 1024), min_size=1, max_size=10), cuts())
def test_of_a_stream_that_repeats_itself_nothing_is_made_up(
    word: bytes, size: int, sizes: list[int], story: list[tuple[int, int, int | None]]
) -> None:
    stream = (word * (size // len(word) + 1))[:size]
    model = Model(cut_up(stream, sizes))
    asyncio.run(follow(model, story))
    assert len(model.out) <= len(stream)
    assert all(piece in stream for piece in pieces_of(model.log))


@settings(max_examples=40)
@given(st.integers(1, 100_000), st.sets(st.integers(1, 400)), st.integers(0, 300), st.integers(0, 900))
def test_a_busy_reader_gets_no_byte_twice(size: int, lost: set[int], alone: int, most: int) -> None:
    """What the server dropped in the middle of a socket, without a word, it repeats on the next one, before what we
    have."""
    stream = numbers(8 * size)
    model = Model(cut_up(stream, [1024]))

    async def story() -> None:
        await model.socket(live=most, lost=frozenset(lost))
        model.at = min(model.at + alone, len(model.chunks))
        await model.socket(live=len(model.chunks))

    asyncio.run(story())
    lines = model.out.split(b"\n")[:-1]
    assert lines == sorted(set(lines)), "a line came twice"
    assert model.out[-8:] == stream[-8:]
