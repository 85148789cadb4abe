"""What the wrapper says, read over sockets that break anywhere, and when something else writes there."""

from __future__ import annotations

import base64

import pytest

from app.backends.boxlite.wrapped import (
    PIECE_BYTES,
    Begun,
    ChannelEnd,
    CommandRefused,
    Event,
    Piece,
    SpoiledOutput,
    StdinTaken,
    WrappedChannel,
    acknowledgement,
    stdin_piece,
    wrapped_command,
)


def piece(number: int, data: bytes) -> bytes:
    text = base64.encodebytes(data).rstrip(b"\n")
    return b":%d %d\n%b\n" % (number, len(text), text)


CONTENT = [bytes([65 + n]) * (n * 3 + 1) for n in range(9)]
PIECES = [piece(number, data) for number, data in enumerate(CONTENT, 1)]
STREAM = b">\n" + b"".join(PIECES[:4]) + b"<1\n" + b"".join(PIECES[4:]) + b".9\n"
# Of pieces that were not acknowledged two can be under way: so far the server's memory reaches back at the least.
ENDS = [2 + sum(map(len, PIECES[:n])) + (3 if n > 4 else 0) for n in range(10)]


def text_of(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Piece))


def whole(events: list[Event]) -> bool:
    ends = [event for event in events if isinstance(event, ChannelEnd)]
    has_gap = [event for event in events if isinstance(event, (Piece, ChannelEnd)) and event.has_gap]
    return text_of(events) == b"".join(CONTENT) and len(ends) >= 1 and not has_gap


def test_a_stream_in_bytes_is_read_as_one_in_one_piece() -> None:
    channel, events = WrappedChannel(), []
    for byte in STREAM:
        events += channel.take(bytes([byte]))
    assert events == WrappedChannel().take(STREAM)
    assert whole(events) and channel.ended and channel.pieces == 9
    assert [event for event in events if isinstance(event, (Begun, StdinTaken))] == [Begun(), StdinTaken(1, read=True)]


def test_a_socket_may_break_at_any_byte_and_the_repetition_begin_at_any() -> None:
    """Every cut, with every beginning of the repetition from which on nothing is missing."""
    for cut in range(len(STREAM) + 1):
        complete = max((n for n in range(10) if ENDS[n] <= cut), default=0)
        for begin in range(ENDS[complete] + 1 if cut >= 2 else 1):
            channel = WrappedChannel()
            events = channel.take(STREAM[:cut])
            channel.begin_socket()
            events += channel.take(STREAM[begin:])
            assert whole(events), (cut, begin)


def test_a_repetition_that_does_not_reach_back_is_told() -> None:
    channel = WrappedChannel()
    channel.take(STREAM[: ENDS[2]])
    channel.begin_socket()
    first, *rest = channel.take(STREAM[ENDS[4] :])
    assert isinstance(first, StdinTaken)
    pieces = [event for event in rest if isinstance(event, Piece)]
    assert [event.has_gap for event in pieces] == [True, False, False, False, False]
    channel.begin_socket()
    assert channel.take(b".12\n") == [ChannelEnd(has_gap=True)]


@pytest.mark.parametrize(
    "said",
    [
        b"hello\n",
        b"x" * 64,
        b":1 4\nAAA\n\n",
        b":1 4\n!!!!\n",
        b":1 4\nAAAAA",
        b":1 0\n\n",
        b":1 99999\n",
        b":1 -4\nAAAA\n",
        b":x 4\n",
        b":1 4 4\n",
        b":1 3\nAA=\n",
        b".1\n>\n.0\n.x\n",
        b">\n!missing\n",
        b"!\n",
        b"<\n",
        b"\n",
        b"\xff\n",
        b"[boxlite] stdout output dropped 5 bytes\r\n",
    ],
)
def test_what_the_wrapper_never_says_is_refused(said: bytes) -> None:
    with pytest.raises(SpoiledOutput):
        WrappedChannel().take(said)


def test_no_more_than_a_piece_is_held() -> None:
    channel = WrappedChannel()
    channel.take(piece(1, bytes(PIECE_BYTES))[:-2])
    assert len(channel._held) < PIECE_BYTES * 1.4
    with pytest.raises(SpoiledOutput):
        channel.take(b"AAAA" * 10)
    with pytest.raises(SpoiledOutput):
        WrappedChannel().take(piece(1, bytes(PIECE_BYTES + 3)))


def test_a_channel_that_ends_before_pieces_that_came_is_refused() -> None:
    channel = WrappedChannel()
    channel.take(PIECES[0])
    with pytest.raises(SpoiledOutput):
        channel.take(b".0\n")


def test_a_refusal_comes_before_anything_else() -> None:
    assert WrappedChannel().take(b"!lacks base64\n") == [CommandRefused("lacks base64")]


def test_what_the_wrapper_is_told() -> None:
    assert acknowledgement("o", 7) == b"o 7\n"
    assert stdin_piece(3, b"a\nb") == b"i 3 3\na\nb"
    assert stdin_piece(4, b"") == b"i 4 0\n"
    said = wrapped_command(["ls", "-l"], {"A": "b=c"}, stdin=True)
    assert said["command"] == "sh"
    assert isinstance(said["args"], list)
    assert said["args"][3:] == ["start", "open", "1", "A=b=c", "ls", "-l"]
