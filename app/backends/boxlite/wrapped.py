"""What the wrapper of a command (`scripts/exact.sh`) says, and what it is told. Pure: bytes in, events out.

Pieces have numbers, so what a new socket repeats is passed over, and what is missing is noticed. A program can write
between the wrapper's lines if it wants to: that spoils its own output, and is told from everything that the wrapper
says.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.backends.boxlite.scripts import script

SCRIPT = script("exact")
PIECE_BYTES = 64 * 1024  # of output: what a pipe holds
UNDER_WAY = 2  # pieces of a channel
STDIN_BYTES = 60 * 1024  # of a piece: with its line it is one frame, which the server passes on whole or not at all
_TEXT_BYTES = -(-PIECE_BYTES // 3) * 4
_TEXT_BYTES += _TEXT_BYTES // 76 + 1  # newlines
_LINE_BYTES = 64
_PASSED_OVER_BYTES = _LINE_BYTES + _TEXT_BYTES  # at most, of what a repetition begins with in the middle
_PIECE = re.compile(rb":(\d{1,12}) (\d{1,5})")
_COUNTED = re.compile(rb"([.<|])(\d{1,12})")
_REFUSAL = re.compile(rb"!([ -~]{1,60})")
_BEGINNING = re.compile(rb"(?:\A|\n)(?=[:.<|>!])")  # of a line of the wrapper; base64 has none of these letters
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
class RepeatedPiece:
    """A piece that has arrived before."""


@dataclass(frozen=True, slots=True)
class ChannelEnd:
    has_gap: bool


@dataclass(frozen=True, slots=True)
class StdinTaken:
    """The piece of this number; `read`: the command's stdin is still open."""

    number: int
    read: bool


Event = Begun | CommandRefused | Piece | RepeatedPiece | ChannelEnd | StdinTaken


class WrappedChannel:
    """One channel, over as many sockets as it takes. Holds no more than one piece."""

    def __init__(self) -> None:
        self.pieces = 0  # have arrived
        self.ended = False
        self._held = bytearray()
        self._text: tuple[int, int] | None = None  # number and size of the piece whose text comes
        self._seen = self._begun = False
        self.begin_socket()

    def begin_socket(self) -> None:
        """The server repeats what it has of the channel; what was not whole comes again."""
        self._held.clear()
        self._text = None
        self._is_repeated = self._seen  # what comes may begin in the middle of a line or of a piece
        self._passed_over = 0  # bytes of that
        self._said: set[bytes] = set()  # on this socket, of what is said once
        self._stdin_taken = 0  # number of the last piece of stdin that was acknowledged on this socket

    def take(self, data: bytes) -> Iterator[Event]:
        """Yields what `data` completes. One step costs no more than the decoding of one piece, so the caller can let
        others go first after each. Raises SpoiledOutput."""
        self._seen = True
        self._held += data
        while (event := self._next()) is not None:
            yield event

    def _next(self) -> Event | None:
        """None when more must come first."""
        if self._is_repeated:
            self._pass_over()
        if self._is_repeated:
            return None
        if self._text is None:
            line = self._line()
            if line is None:
                return None
            if (piece := _PIECE.fullmatch(line)) is None:
                return self._event(line)
            self._text = self._announced(int(piece[1]), int(piece[2]))
        return self._piece(*self._text)

    def _pass_over(self) -> None:
        """The rest of a piece whose beginning is not repeated."""
        found = _BEGINNING.search(self._held)
        # Without a beginning all can go, but for the end of a line: a beginning may follow it.
        size = len(self._held) - self._held.endswith(b"\n") if found is None else found.end()
        del self._held[:size]
        self._passed_over += size
        if self._passed_over > _PASSED_OVER_BYTES:
            raise SpoiledOutput
        self._is_repeated = found is None

    def _line(self) -> bytes | None:
        """None when more must come first."""
        end = self._held.find(b"\n", 0, _LINE_BYTES)
        if end < 0:
            if len(self._held) >= _LINE_BYTES:
                raise SpoiledOutput
            return None
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        return line

    def _event(self, line: bytes) -> Event:
        if line == b">":
            self._say_once(b">")
            self._begun = True
            return Begun()
        if (refusal := _REFUSAL.fullmatch(line)) is not None and not self._begun:
            self._say_once(b"!")
            return CommandRefused(refusal[1].decode())
        counted = _COUNTED.fullmatch(line)
        if counted is None:
            raise SpoiledOutput
        tag, number = counted[1], int(counted[2])
        return self._end(number) if tag == b"." else self._acknowledged(number, read=tag == b"<")

    def _say_once(self, tag: bytes) -> None:
        """On one socket, and nothing of it behind the end of the channel."""
        if tag in self._said or b"." in self._said:
            raise SpoiledOutput
        self._said.add(tag)

    def _end(self, pieces: int) -> ChannelEnd:
        self._say_once(b".")
        if pieces < self.pieces:
            raise SpoiledOutput
        self.ended = True
        return ChannelEnd(has_gap=pieces > self.pieces)

    def _acknowledged(self, number: int, *, read: bool) -> StdinTaken:
        """Each piece of stdin once, in their order. It may follow the end of the channel: a command that has closed
        stdout still reads."""
        if number <= self._stdin_taken:
            raise SpoiledOutput
        self._stdin_taken = number
        return StdinTaken(number, read)

    def _announced(self, number: int, size: int) -> tuple[int, int]:
        if not 0 < size <= _TEXT_BYTES or b"." in self._said:
            raise SpoiledOutput
        return number, size

    def _piece(self, number: int, size: int) -> Piece | RepeatedPiece | None:
        """None when more must come first."""
        if len(self._held) <= size:
            return None
        text, end = bytes(self._held[:size]), self._held[size]
        del self._held[: size + 1]
        self._text = None
        if end != _NEWLINE:
            raise SpoiledOutput
        if number <= self.pieces:
            return RepeatedPiece()
        piece = Piece(_decoded(text), has_gap=number > self.pieces + 1)
        self.pieces = number
        return piece


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
