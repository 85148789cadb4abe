"""The answer to a run: its exit, both channels, and the files that were collected, as one JSON document.

It is made piece by piece, as two texts of 8 MiB would hold the event loop for too long.
"""

from __future__ import annotations

import contextlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence

from pydantic_core import to_json
from starlette.responses import Response

from app.api.schemas.views import Body, exit_body
from app.core.collecting import CollectedFile
from app.core.running import Captured, Outcome
from app.core.timeslices import TimeSlices

_CONTINUATION = 3  # bytes that a UTF-8 character has at most behind its first
_PIECE = 48 * 1024  # a multiple of three, as base64 wants
# Bytes of JSON. A control character becomes six; what is longer is shorter as base64, which is at most 22 MiB.
_TEXT_MOST = 24 * 1024 * 1024


async def response_of(outcome: Outcome, told: Body) -> Response:
    """`told` are the first members of the object."""
    slices = TimeSlices.of_loop()
    channels = {"stdout": outcome.stdout, "stderr": outcome.stderr}
    encoding, pieces = "utf-8", None
    with contextlib.suppress(UnicodeDecodeError):
        texts: dict[str, Iterator[bytes]] = {}
        for name, channel in channels.items():
            texts[name] = _json_pieces(text_of(channel))
            await slices.next()
        pieces = await _members(texts, _TEXT_MOST)
    if pieces is None:
        encoding = "base64"
        pieces = await _members({name: _base64_pieces(channel.data) for name, channel in channels.items()})
    body: Body = {
        **told,
        "exit": exit_body(outcome.exit),
        "output_mode": outcome.output_mode,
        "stdout_truncated": outcome.stdout.truncated,
        "stderr_truncated": outcome.stderr.truncated,
        "encoding": encoding,
    }
    files = await _collected(outcome.collected)
    whole = await _joined([to_json(body)[:-1], *(pieces or ()), b',"collected":[', *files, b"]}"])
    return Response(whole, media_type="application/json")


async def _joined(pieces: Sequence[bytes]) -> memoryview:
    """Joins pieces in slices, as the kernel has to find up to 36 MiB of memory."""
    slices = TimeSlices.of_loop()
    whole, at = bytearray(sum(map(len, pieces))), 0
    for piece in pieces:
        whole[at : at + len(piece)] = piece
        at += len(piece)
        if slices.over:
            await slices.next()
    return memoryview(whole)


def _json_pieces(text: str) -> Iterator[bytes]:
    return (to_json(text[at : at + _PIECE])[1:-1] for at in range(0, len(text), _PIECE))


def _base64_pieces(data: bytes) -> Iterator[bytes]:
    return (b64encode(data[at : at + _PIECE]) for at in range(0, len(data), _PIECE))


async def _members(texts: Mapping[str, Iterator[bytes]], most: int | None = None) -> list[bytes] | None:
    """Further members of a JSON object. None when they would have more bytes than allowed."""
    slices = TimeSlices.of_loop()
    pieces: list[bytes] = []
    size = 0
    for name, text in texts.items():
        pieces.append(b',"%b":"' % name.encode())
        for piece in text:
            pieces.append(piece)
            size += len(piece)
            if most is not None and size > most:
                return None
            if slices.over:
                await slices.next()
        pieces.append(b'"')
    return pieces


async def _collected(files: Sequence[CollectedFile]) -> list[bytes]:
    slices = TimeSlices.of_loop()
    pieces: list[bytes] = []
    for number, file in enumerate(files):
        path = file.path.decode(errors="replace")
        body: Body = {"path": path}
        if path.encode() != file.path:
            body["path_base64"] = b64encode(file.path).decode()
        if file.content is None:
            body["error"] = file.error
        pieces += [b"," if number else b"", to_json(body)[:-1]]
        if file.content is not None:
            pieces.append(b',"content_base64":"')
            for piece in _base64_pieces(file.content):
                pieces.append(piece)
                if slices.over:
                    await slices.next()
            pieces.append(b'"')
        pieces.append(b"}")
        if slices.over:
            await slices.next()
    return pieces


def text_of(channel: Captured) -> str:
    """Raises UnicodeDecodeError for bytes that are not UTF-8. A character that the output limit cut in two is left out.
    Otherwise every second text over the limit would come as base64."""
    data = channel.data
    if channel.cut_begin:
        whole = next((at for at in range(min(_CONTINUATION, len(data))) if not 0x80 <= data[at] < 0xC0), _CONTINUATION)
        data = data[whole:]
    if not channel.cut_end:
        return data.decode()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise
        return data[: error.start].decode()
