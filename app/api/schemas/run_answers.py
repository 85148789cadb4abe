"""The answer to a run: its exit, both channels, and the files that were collected, as one JSON document.

It is made piece by piece, as two texts of 8 MiB would hold the event loop for too long. The pieces go straight into the
answer: lists of pieces and whole decoded texts took several times its memory.
"""

from __future__ import annotations

import codecs
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from mmap import mmap

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.http.paced import COUNTED
from app.api.schemas.views import REFUSED_BYTES, Body, exit_body, refused_body
from app.core.collecting import FILES, PATH_BYTES, TOTAL_BYTES, CollectedFile, Pattern
from app.core.reservations import Reservation
from app.core.running import Captured, Outcome
from app.core.timeslices import TimeSlices

_CONTINUATION = 3  # bytes that a UTF-8 character has at most behind its first
_PIECE = 48 * 1024  # a multiple of three, as base64 wants
# Bytes of JSON. A control character becomes six; what is longer is shorter as base64, which is at most 22 MiB.
_TEXT_MOST = 24 * 1024 * 1024
_ESCAPED = 6  # bytes of JSON for one byte, at most
_MEMBERS = 4096  # bytes of JSON beside the two channels, the files and the refused hosts
_ENTRY = 1024  # bytes of a collected file's entry beside its path and content: names of members, the error


def answer_bytes(output: int, patterns: Sequence[Pattern], refused: int = 0) -> int:
    """The most memory, in bytes, that an answer takes while it is made. It holds the raw bytes and the JSON at once.
    `output`: stored bytes of both channels together. `refused`: number of refused hosts."""
    size = output + max(min(output * _ESCAPED, _TEXT_MOST), _base64_bytes(output)) + _MEMBERS + refused * REFUSED_BYTES
    if not patterns:
        return size
    entries, paths = len(patterns), sum(len(pattern.text.encode(errors="replace")) for pattern in patterns)
    if any(pattern.is_wild for pattern in patterns):
        entries, paths = entries + FILES, paths + FILES * PATH_BYTES
    size += TOTAL_BYTES + _base64_bytes(TOTAL_BYTES)
    return size + entries * _ENTRY + paths * (1 + _ESCAPED)


def _base64_bytes(size: int) -> int:
    return size * 4 // 3 + 8  # two texts, each padded


class _CountedResponse(Response):
    """Gives the answer's memory back when the answer was sent, or cannot be sent."""

    def __init__(self, body: memoryview, reservation: Reservation) -> None:
        super().__init__(body, media_type="application/json")
        self._reservation = reservation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            await send({**message, COUNTED: True} if message["type"] == "http.response.start" else message)

        try:
            await super().__call__(scope, receive, counted if self._reservation.held else send)
        finally:
            self._reservation.close()


async def response_of(outcome: Outcome, told: Body, reservation: Reservation) -> Response:
    """`told` are the first members of the object. `reservation` is closed when the response was sent."""
    body: Body = {
        **told,
        "exit": exit_body(outcome.exit),
        "output_mode": outcome.output_mode,
        "stdout_truncated": outcome.stdout.truncated,
        "stderr_truncated": outcome.stderr.truncated,
        "network": refused_body(outcome.refused),
    }
    channels = {"stdout": outcome.stdout, "stderr": outcome.stderr}
    whole = _Document(_most_bytes(outcome))
    whole.append(to_json(body)[:-1])
    begin = whole.size
    if not await _add(whole, _text_members(channels), begin + _TEXT_MOST):
        whole.size = begin
        await _add(whole, _base64_members(channels))
    whole.append(b',"collected":[')
    await _add(whole, _collected(outcome.collected))
    whole.append(b"]}")
    reservation.shrink(whole.touched)
    return _CountedResponse(whole.content, reservation)


class _Document:
    """Bytes in a mapping of their own. The kernel finds memory for the pages that are written, and only then. An array
    that grows is copied again and again, which held the event loop for 21 ms."""

    def __init__(self, most: int) -> None:
        self._memory = mmap(-1, most)
        self.size = 0
        self.touched = 0  # the most bytes that it had

    @property
    def content(self) -> memoryview:
        return memoryview(self._memory)[: self.size]

    def append(self, piece: bytes) -> None:
        self._memory[self.size : self.size + len(piece)] = piece
        self.size += len(piece)
        self.touched = max(self.touched, self.size)


def _most_bytes(outcome: Outcome) -> int:
    """Address space for the JSON. One piece more than allowed is written before the text is given up."""
    output = len(outcome.stdout.data) + len(outcome.stderr.data)
    size = answer_bytes(output, (), len(outcome.refused)) + _ESCAPED * _PIECE
    for file in outcome.collected:
        size += _ESCAPED * (len(file.error or "") * 4 + 2 * len(file.path)) + _base64_bytes(len(file.content or b""))
    return size + len(outcome.collected) * _ENTRY


async def _add(whole: _Document, pieces: Iterable[bytes], most: int | None = None) -> bool:
    """Returns False when the answer would have more bytes than allowed, or the pieces are not UTF-8."""
    slices = TimeSlices.of_loop()
    try:
        for piece in pieces:
            whole.append(piece)
            if most is not None and whole.size > most:
                return False
            if slices.over:
                await slices.next()
    except UnicodeDecodeError:
        return False
    return True


def _text_members(channels: dict[str, Captured]) -> Iterator[bytes]:
    """Raises UnicodeDecodeError."""
    for name, channel in channels.items():
        yield b',"%b":"' % name.encode()
        for text in text_pieces(channel):
            yield to_json(text)[1:-1]
        yield b'"'
    yield b',"encoding":"utf-8"'


def _base64_members(channels: dict[str, Captured]) -> Iterator[bytes]:
    for name, channel in channels.items():
        yield b',"%b":"' % name.encode()
        yield from _base64_pieces(channel.data)
        yield b'"'
    yield b',"encoding":"base64"'


def _base64_pieces(data: bytes) -> Iterator[bytes]:
    return (b64encode(data[at : at + _PIECE]) for at in range(0, len(data), _PIECE))


def _collected(files: Sequence[CollectedFile]) -> Iterator[bytes]:
    for number, file in enumerate(files):
        path = file.path.decode(errors="replace")
        body: Body = {"path": path}
        if path.encode() != file.path:
            body["path_base64"] = b64encode(file.path).decode()
        if file.content is None:
            body["error"] = file.error
        yield b"," if number else b""
        yield to_json(body)[:-1]
        if file.content is not None:
            yield b',"content_base64":"'
            yield from _base64_pieces(file.content)
            yield b'"'
        yield b"}"


def text_pieces(channel: Captured) -> Iterator[str]:
    """Raises UnicodeDecodeError for bytes that are not UTF-8. A character that the output limit cut in two is left out.
    Otherwise every second text over the limit would come as base64."""
    data, begin = channel.data, 0
    if channel.cut_begin:
        begin = next((at for at in range(min(_CONTINUATION, len(data))) if not 0x80 <= data[at] < 0xC0), _CONTINUATION)
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(begin, len(data), _PIECE):
        yield decoder.decode(data[at : at + _PIECE])
    if not channel.cut_end:
        yield decoder.decode(b"", final=True)
