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
from app.core.models import ExecutionLimits

SCRIPT = script("exact")
PIECE_BYTES = 64 * 1024  # of output: what a pipe holds
UNDER_WAY = 2  # pieces of a channel
_NO_LIMITS = ExecutionLimits()
STDIN_BYTES = 60 * 1024  # of a piece: with its line it is one frame, which the server passes on whole or not at all
_TEXT_BYTES = -(-PIECE_BYTES // 3) * 4
_TEXT_BYTES += _TEXT_BYTES // 76 + 1  # newlines
_LINE_BYTES = 64
_PASSED_OVER_BYTES = _LINE_BYTES + _TEXT_BYTES  # at most, of what a repetition begins with in the middle
_PIECE = re.compile(rb":(\d{1,12})")
_PIECE_END = b";\n"
_END = re.compile(rb"\.(\d{1,12})")
_STDIN = re.compile(rb"[<|]")  # begins what is said of stdin, which base64 and other lines have nowhere
_STDIN_TAKEN = re.compile(rb"([<|])(\d{1,12})")
_REFUSAL = re.compile(rb"!([ -~]{1,60})")
_BEGINNING = re.compile(rb"(?:\A|\n)(?=[:.>!])")  # of any other line; base64 has none of these letters either


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
        self._held = bytearray()  # without what is said of stdin
        self._stdin = bytearray()  # the beginning of what is said of stdin
        self._number: int | None = None  # of the piece whose text comes
        self._seen = self._begun = False
        self.begin_socket()

    def begin_socket(self) -> None:
        """The server repeats what it has of the channel; what was not whole comes again."""
        self._held.clear()
        self._stdin.clear()
        self._number = None
        self._is_repeated = self._seen  # what comes may begin in the middle of a line or of a piece
        self._passed_over = 0  # bytes of that
        self._said: set[bytes] = set()  # on this socket, of what is said once
        self._stdin_taken = 0  # number of the last piece of stdin that was acknowledged on this socket

    def take(self, data: bytes) -> Iterator[Event]:
        """Yields what `data` completes. One step costs no more than the decoding of one piece, so the caller can let
        others go first after each. Raises SpoiledOutput."""
        self._seen = True
        left = self._stdin + data
        self._stdin.clear()
        while left:
            found = _STDIN.search(left)
            size = found.start() if found is not None else len(left)
            self._held += left[:size]
            del left[:size]
            while (event := self._next()) is not None:
                yield event
            if left:
                line = _line(left)
                if line is None:
                    self._stdin = left
                    return
                yield self._acknowledged(line)

    def _next(self) -> Event | None:
        """None when more must come first."""
        if self._is_repeated:
            self._pass_over()
        if self._is_repeated:
            return None
        if self._number is None:
            line = _line(self._held)
            if line is None:
                return None
            if (piece := _PIECE.fullmatch(line)) is None:
                return self._event(line)
            self._number = self._announced(int(piece[1]))
        return self._piece(self._number)

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

    def _event(self, line: bytes) -> Event:
        if line == b">":
            self._say_once(b">")
            self._begun = True
            return Begun()
        if (refusal := _REFUSAL.fullmatch(line)) is not None and not self._begun:
            self._say_once(b"!")
            return CommandRefused(refusal[1].decode())
        if (end := _END.fullmatch(line)) is not None:
            return self._end(int(end[1]))
        raise SpoiledOutput

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

    def _acknowledged(self, line: bytes) -> StdinTaken:
        """Each piece of stdin once, in their order. It may follow the end of the channel: a command that has closed
        stdout still reads."""
        taken = _STDIN_TAKEN.fullmatch(line)
        if taken is None or int(taken[2]) <= self._stdin_taken:
            raise SpoiledOutput
        self._stdin_taken = int(taken[2])
        return StdinTaken(self._stdin_taken, read=taken[1] == b"<")

    def _announced(self, number: int) -> int:
        if b"." in self._said:
            raise SpoiledOutput
        self._searched = 0  # of the text: here it does not end
        return number

    def _piece(self, number: int) -> Piece | RepeatedPiece | None:
        """None when more must come first."""
        end = self._held.find(_PIECE_END, self._searched)
        size = max(0, len(self._held) - 1) if end < 0 else end  # of the text; the last byte may begin its end
        if size > _TEXT_BYTES:
            raise SpoiledOutput
        if end < 0:
            self._searched = size
            return None
        text = bytes(self._held[:size])
        del self._held[: size + len(_PIECE_END)]
        self._number = None
        if number <= self.pieces:
            return RepeatedPiece()
        piece = Piece(_decoded(text), has_gap=number > self.pieces + 1)
        self.pieces = number
        return piece


def _line(held: bytearray) -> bytes | None:
    """Takes the first line. None when more must come first. Raises SpoiledOutput."""
    end = held.find(b"\n", 0, _LINE_BYTES)
    if end < 0:
        if len(held) >= _LINE_BYTES:
            raise SpoiledOutput
        return None
    line = bytes(held[:end])
    del held[: end + 1]
    return line


def _decoded(text: bytes) -> bytes:
    try:
        data = binascii.a2b_base64(text.replace(b"\n", b""), strict_mode=True)
    except binascii.Error:
        raise SpoiledOutput from None
    if not 0 < len(data) <= PIECE_BYTES:
        raise SpoiledOutput
    return data


def wrapped_command(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: bool,
    merged: bool = False,
    limits: ExecutionLimits = _NO_LIMITS,
) -> dict[str, object]:
    """`command` and `args`, as the server takes them. `merged`: stderr goes into the pipe of stdout. `limits`: those of
    setrlimit(2) are set."""
    # A program with `=` in its name would be a variable to env(1).
    command = ["/bin/sh", "-c", 'exec "$0" "$@"', *argv] if "=" in argv[0] else list(argv)
    variables = [f"{name}={value}" for name, value in env.items()]
    how = ["open" if stdin else "none", "merged" if merged else "apart", _rlimits(limits), str(len(variables))]
    return {"command": "sh", "args": ["-c", 'eval "$0"', SCRIPT, "start", *how, *variables, *command]}


def _rlimits(limits: ExecutionLimits) -> str:
    """Stack in KiB, descriptors, and size of a file in blocks of 512 bytes, as POSIX has the last."""
    blocks = limits.file_mib and limits.file_mib * 2048
    stack = limits.stack_mib and limits.stack_mib * 1024
    return " ".join("-" if limit is None else str(limit) for limit in (stack, limits.open_files, blocks))


def acknowledgement(letter: str, pieces: int) -> bytes:
    return f"{letter} {pieces}\n".encode()


def stdin_piece(number: int, data: bytes) -> bytes:
    """Without data: the end of stdin."""
    return f"i {number} {len(data)}\n".encode() + data
