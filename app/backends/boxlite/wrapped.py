"""What the wrapper of a command (`scripts/exact.sh`) says, and what it is told. Pure: bytes in, events out.

Pieces have numbers, so what a new socket repeats is passed over, and what is missing is noticed. A program can write
between the wrapper's lines if it wants to: that spoils its own output, and is told from everything that the wrapper
says.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.backends.boxlite.scripts import script

SCRIPT = script("exact")
PIECE_BYTES = 64 * 1024  # of output: what a pipe holds
UNDER_WAY = 2  # pieces of a channel
STDIN_BYTES = 60 * 1024  # of a piece: with its line it is one frame, which the server passes on whole or not at all
_TEXT_BYTES = -(-PIECE_BYTES // 3) * 4
_TEXT_BYTES += _TEXT_BYTES // 76 + 1  # newlines
_LINE_BYTES = 64
_REPEATED_LINE_BYTES = 128  # the rest of one that a repetition begins with: of base64 there are 76 letters in a line
_PIECE = re.compile(rb":(\d{1,12}) (\d{1,5})")
_COUNTED = re.compile(rb"([.<|])(\d{1,12})")
_REFUSAL = re.compile(rb"!([ -~]{1,60})")
_TAGS = (b":", b".", b"<", b"|", b">", b"!")
_NEWLINE = 0x0A


class SpoiledOutput(Exception):
    """Something else than the wrapper wrote to its output."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What carries the bytes is there."""


@dataclass(frozen=True, slots=True)
class CommandRefused:
    """The command cannot begin."""

    why: str


@dataclass(frozen=True, slots=True)
class Piece:
    data: bytes
    has_gap: bool  # before it something is missing


@dataclass(frozen=True, slots=True)
class ChannelEnd:
    has_gap: bool


@dataclass(frozen=True, slots=True)
class StdinTaken:
    """The piece of this number; `read`: the command's stdin is still open."""

    number: int
    read: bool


Event = Begun | CommandRefused | Piece | ChannelEnd | StdinTaken


class WrappedChannel:
    """One channel, over as many sockets as it takes. Holds no more than one piece."""

    def __init__(self) -> None:
        self.pieces = 0  # have arrived
        self.ended = False
        self._held = bytearray()
        self._text: tuple[int, int] | None = None  # number and size of the piece whose text comes
        self._repeated = False  # what comes may begin in the middle of a line
        self._seen = self._begun = False

    def begin_socket(self) -> None:
        """The server repeats what it has of the channel; what was not whole comes again."""
        self._held.clear()
        self._text = None
        self._repeated = self._seen

    def take(self, data: bytes) -> list[Event]:
        """What `data` completes. Raises SpoiledOutput."""
        self._seen = True
        self._held += data
        events: list[Event] = []
        while self._take_text(events) if self._text is not None else self._take_line(events):
            pass
        return events

    def _take_line(self, events: list[Event]) -> bool:
        """False when more must come first."""
        most = _REPEATED_LINE_BYTES if self._repeated else _LINE_BYTES
        end = self._held.find(b"\n", 0, most)
        if end < 0:
            if len(self._held) >= most:
                raise SpoiledOutput
            return False
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        if self._repeated and not line.startswith(_TAGS):
            return True  # the rest of a piece whose beginning is not repeated
        self._repeated = False
        if (piece := _PIECE.fullmatch(line)) is not None:
            self._text = int(piece[1]), int(piece[2])
            if not 0 < self._text[1] <= _TEXT_BYTES:
                raise SpoiledOutput
        else:
            events.append(self._event(line))
        return True

    def _event(self, line: bytes) -> Event:
        if line == b">":
            self._begun = True
            return Begun()
        if (refusal := _REFUSAL.fullmatch(line)) is not None and not self._begun:
            return CommandRefused(refusal[1].decode())
        counted = _COUNTED.fullmatch(line)
        if counted is None:
            raise SpoiledOutput
        tag, number = counted[1], int(counted[2])
        if tag != b".":
            return StdinTaken(number, read=tag == b"<")
        if number < self.pieces:
            raise SpoiledOutput
        self.ended = True
        return ChannelEnd(has_gap=number > self.pieces)

    def _take_text(self, events: list[Event]) -> bool:
        """False when more must come first."""
        number, size = self._text or (0, 0)
        if len(self._held) <= size:
            return False
        text, end = bytes(self._held[:size]), self._held[size]
        del self._held[: size + 1]
        self._text = None
        if end != _NEWLINE:
            raise SpoiledOutput
        if number > self.pieces:
            events.append(Piece(_decoded(text), has_gap=number > self.pieces + 1))
            self.pieces = number
        return True


def _decoded(text: bytes) -> bytes:
    try:
        data = binascii.a2b_base64(text.replace(b"\n", b""), strict_mode=True)
    except binascii.Error:
        raise SpoiledOutput from None
    if not 0 < len(data) <= PIECE_BYTES:
        raise SpoiledOutput
    return data


def wrapped_command(argv: Sequence[str], env: Mapping[str, str], *, stdin: bool) -> dict[str, object]:
    """`command` and `args`, as the server takes them. A program with `=` in its name would be a variable to env(1)."""
    command = ["/bin/sh", "-c", 'exec "$0" "$@"', *argv] if "=" in argv[0] else list(argv)
    variables = [f"{name}={value}" for name, value in env.items()]
    args = ["-c", 'eval "$0"', SCRIPT, "start", "open" if stdin else "none", str(len(variables)), *variables, *command]
    return {"command": "sh", "args": args}


def acknowledgement(letter: str, pieces: int) -> bytes:
    return f"{letter} {pieces}\n".encode()


def stdin_piece(number: int, data: bytes) -> bytes:
    """Without data: the end of stdin."""
    return f"i {number} {len(data)}\n".encode() + data
