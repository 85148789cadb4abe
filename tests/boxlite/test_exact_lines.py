"""What the wrapper says, read over sockets that break anywhere, and when something else writes there."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import cast

import pytest

from app.backends.boxlite.attach import Chunk, Ended, Socket
from app.backends.boxlite.streams import CurrentSocket, ExactStreams
from app.backends.boxlite.wrapped import (
    PIECE_BYTES,
    Begun,
    ChannelEnd,
    CommandRefused,
    Event,
    Piece,
    RepeatedPiece,
    SpoiledOutput,
    StdinTaken,
    WrappedChannel,
    acknowledgement,
    stdin_piece,
    wrapped_command,
)
from app.core.backend import Logs
from app.core.models import Channel, ExecutionLimits
from tests.boxlite.rig import new_log
from tests.callbacks import own_work


def piece(number: int, data: bytes) -> bytes:
    return b":%d\n%b;\n" % (number, base64.encodebytes(data))


CONTENT = [bytes([65 + n]) * (n * 3 + 1) for n in range(9)]
PIECES = [piece(number, data) for number, data in enumerate(CONTENT, 1)]
PIECES[4] = PIECES[4][:9] + b"<1\n" + PIECES[4][9:]  # in the middle of a line
STREAM = b">\n" + b"".join(PIECES[:6]) + b"<2\n" + b"".join(PIECES[6:]) + b".9\n"
# Of pieces that were not acknowledged two can be under way: so far the server's memory reaches back at the least.
ENDS = [2 + sum(map(len, PIECES[:n])) + (3 if n > 6 else 0) for n in range(10)]


def taken(channel: WrappedChannel, data: bytes) -> list[Event]:
    return list(channel.take(data))


def text_of(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Piece))


def whole(events: list[Event]) -> bool:
    ends = [event for event in events if isinstance(event, ChannelEnd)]
    has_gap = [event for event in events if isinstance(event, (Piece, ChannelEnd)) and event.has_gap]
    return text_of(events) == b"".join(CONTENT) and len(ends) >= 1 and not has_gap


def test_a_stream_in_bytes_is_read_as_one_in_one_piece() -> None:
    channel, events = WrappedChannel(), []
    for byte in STREAM:
        events += taken(channel, bytes([byte]))
    assert events == taken(WrappedChannel(), STREAM)
    assert whole(events) and channel.ended and channel.pieces == 9
    assert [event for event in events if isinstance(event, (Begun, StdinTaken))] == [
        Begun(),
        StdinTaken(1, read=True),
        StdinTaken(2, read=True),
    ]


def test_a_socket_may_break_at_any_byte_and_the_repetition_begin_at_any() -> None:
    """Every cut, with every beginning of the repetition from which on nothing is missing."""
    for cut in range(len(STREAM) + 1):
        complete = max((n for n in range(10) if ENDS[n] <= cut), default=0)
        for begin in range(ENDS[complete] + 1 if cut >= 2 else 1):
            channel = WrappedChannel()
            events = taken(channel, STREAM[:cut])
            channel.begin_socket()
            events += taken(channel, STREAM[begin:])
            assert whole(events), (cut, begin)


def test_a_repetition_that_does_not_reach_back_is_told() -> None:
    channel = WrappedChannel()
    taken(channel, STREAM[: ENDS[2]])
    channel.begin_socket()
    first, *rest = taken(channel, STREAM[ENDS[6] :])
    assert isinstance(first, StdinTaken)
    pieces = [event for event in rest if isinstance(event, Piece)]
    assert [event.has_gap for event in pieces] == [True, False, False]
    channel.begin_socket()
    assert taken(channel, b".12\n") == [ChannelEnd(has_gap=True)]


@pytest.mark.parametrize(
    "said",
    [
        b"hello\n",
        b"x" * 64,
        b":1\nAAA\n;\n",
        b":1\n!!!!\n;\n",
        b":1\nAAA-\n;\n",
        b":1\n;\n",
        b":1\n\n;\n",
        b":1\n:2\nAAAA\n;\n",
        b":-1\n",
        b":x\n",
        b":1 4\n",
        b":\n",
        b":1\nAA=\n;\n",
        b":1\nAAAA\n!\n;\n",
        b":1\nAA<x\nAA\n",
        b":1\nAA>\nAA\n;\n",
        b";\n",
        b".1\n>\n.0\n.x\n",
        b">\n!missing\n",
        b"!\n",
        b"<\n",
        b"\n",
        b"\xff\n",
        b">\n>\n",
        b"!missing\n!missing\n",
        b".0\n.0\n",
        b".0\n>\n",
        b".0\n:1\nQUJD\n;\n",
        b"<0\n",
        b"<1\n<1\n",
        b"<2\n|1\n",
        b"[boxlite] stdout output dropped 5 bytes\r\n",
    ],
)
def test_what_the_wrapper_never_says_is_refused(said: bytes) -> None:
    with pytest.raises(SpoiledOutput):
        taken(WrappedChannel(), said)


def test_no_more_than_a_piece_is_held() -> None:
    channel = WrappedChannel()
    whole = piece(1, bytes(PIECE_BYTES))
    taken(channel, whole[:-1])
    assert len(channel._held) < PIECE_BYTES * 1.4
    assert len(taken(channel, whole[-1:] + whole)) == 2
    taken(channel, whole[:-2])
    with pytest.raises(SpoiledOutput):
        taken(channel, b"AAAA")
    for character in b"<1":
        taken(channel := WrappedChannel(), b"<")
        with pytest.raises(SpoiledOutput):
            taken(channel, bytes([character]) * 63)
    with pytest.raises(SpoiledOutput):
        taken(WrappedChannel(), piece(1, bytes(PIECE_BYTES + 3)))


def test_a_channel_that_ends_before_pieces_that_came_is_refused() -> None:
    channel = WrappedChannel()
    taken(channel, PIECES[0])
    with pytest.raises(SpoiledOutput):
        taken(channel, b".0\n")


def test_a_refusal_comes_before_anything_else() -> None:
    assert taken(WrappedChannel(), b"!lacks base64\n") == [CommandRefused("lacks base64")]


def test_what_the_wrapper_is_told() -> None:
    assert acknowledgement("o", 7) == b"o 7\n"
    assert stdin_piece(3, b"a\nb") == b"i 3 3\na\nb"
    assert stdin_piece(4, b"") == b"i 4 0\n"
    said = wrapped_command(["ls", "-l"], {"A": "b=c"}, stdin=True)
    assert said["command"] == "sh"
    assert isinstance(said["args"], list)
    assert said["args"][3:] == ["start", "open", "apart", "- - -", "1", "A=b=c", "ls", "-l"]
    limits = ExecutionLimits(stack_mib=2, file_mib=3)
    merged = wrapped_command(["ls"], {}, stdin=False, merged=True, limits=limits)
    assert merged["args"][3:] == ["start", "none", "merged", "2048 - 6144", "0", "ls"]  # type: ignore[index]


def test_a_command_that_has_closed_stdout_still_takes_stdin() -> None:
    assert taken(WrappedChannel(), b".0\n<1\n|2\n") == [
        ChannelEnd(has_gap=False),
        StdinTaken(1, read=True),
        StdinTaken(2, read=False),
    ]


def test_what_is_said_once_is_said_again_on_the_next_socket() -> None:
    channel = WrappedChannel()
    for _ in range(3):
        events = taken(channel, b">\n<1\n" + PIECES[0] + b".1\n")
        assert [type(event) for event in events if not isinstance(event, (Piece, RepeatedPiece))] == [
            Begun,
            StdinTaken,
            ChannelEnd,
        ]
        channel.begin_socket()


@pytest.mark.parametrize("line", [b"\n", b"A\n", b"A" * 76 + b"\n", b"A" * 1000])
def test_a_repetition_begins_with_the_rest_of_one_piece_at_most(line: bytes) -> None:
    channel = WrappedChannel()
    taken(channel, b">\n")
    channel.begin_socket()
    with pytest.raises(SpoiledOutput):
        for _ in range(-(-PIECE_BYTES * 2 // len(line))):
            taken(channel, line)


# --- a program in the box that writes lines of the wrapper


class QueuedFrames:
    """Stands for a WebSocket whose frames have all arrived, so that reading them waits for nothing."""

    def __init__(self, channel: Channel, *frames: bytes) -> None:
        self._channel, self._frames = channel, frames

    async def frames(self) -> AsyncIterator[Chunk | Ended]:
        for frame in self._frames:
            yield Chunk(self._channel, frame)
        yield Ended(0)

    async def write(self, data: bytes) -> None:
        pass


async def read(channel: Channel, *frames: bytes) -> tuple[Logs, int]:
    """The logs, and how often others had their turn meanwhile."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    logs, turns = Logs(new_log(), new_log()), 0
    streams = ExactStreams(logs, CurrentSocket(ended), ended)
    reading = asyncio.create_task(streams.take(cast(Socket, QueuedFrames(channel, *frames))))
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    await reading
    return logs, turns


@pytest.mark.parametrize("in_one_frame", [1, 2000])
async def test_lines_without_number_leave_the_event_loop_to_others(in_one_frame: int) -> None:
    """The shortest pieces there are, in 6,000 frames and in frames of the largest size. That no callback takes more
    than 20 ms of processor time is measured in every test."""
    with own_work():
        pieces = [b":%d\nQUJD\n;\n" % number for number in range(1, 42_001)]
        size = 7 * in_one_frame
        frames = [b"".join(pieces[at : at + size]) for at in range(0, len(pieces), size)]
    logs, turns = await read(Channel.STDOUT, *frames)
    assert len(frames) in {3, 6000}
    assert logs.stdout.total == 3 * 42_000
    assert turns > 10


async def test_pieces_that_came_before_leave_the_event_loop_to_others() -> None:
    with own_work():
        frames = [b":1\nQUJD\n;\n" * 10_000] * 5
    logs, turns = await read(Channel.STDOUT, *frames)
    assert logs.stdout.total == 3
    assert turns > 5


@pytest.mark.parametrize("line", [b"<1\n", b"|1\n", b">\n", b"!missing\n"])
async def test_stderr_carries_pieces_only(line: bytes) -> None:
    with pytest.raises(SpoiledOutput):
        await read(Channel.STDERR, line)


@pytest.mark.parametrize("line", [b"<1\n", b"|1\n", b"<999999999999\n"])
async def test_stdin_that_was_not_sent_cannot_have_been_taken(line: bytes) -> None:
    with pytest.raises(SpoiledOutput):
        await read(Channel.STDOUT, b">\n" + line)
