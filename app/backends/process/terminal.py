"""The gateway's side of a command's terminal: what the program prints comes out of it, what somebody types goes in.

The launcher opens it in the sandbox's own devpts and hands over the controlling side.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios

from app.backends.process.pipes import OutputPump, PipeBudget, StdinPipe
from app.backends.process.streams import Streams
from app.core.backend import Logs
from app.core.models import Command, Terminal

_TIOCGPTPEER = 0x5441  # ioctl_tty(2)
_IUTF8 = 0o40000  # termios(3): rubout takes a whole character
_PIECE, _REST_SECONDS = 4096, 0.01
_OTHER_SIDE = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC


class PseudoTerminal(Streams):
    """Owns `descriptor`, the controlling side. As long as the first process runs, it holds the other side too: programs
    may close the terminal and open it again, and between the two nobody must take the end for the last."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self._other = descriptor, -1

    def open(self, command: Command, logs: Logs, budget: PipeBudget, far_ends: contextlib.ExitStack) -> list[int]:
        """The other side as the command's descriptors 0, 1, 2. Raises OSError; then `close` what was opened."""
        del far_ends
        self._other = fcntl.ioctl(self._descriptor, _TIOCGPTPEER, _OTHER_SIDE)
        try:
            modes = termios.tcgetattr(self._other)
            modes[0] |= _IUTF8
            termios.tcsetattr(self._other, termios.TCSANOW, modes)
        except termios.error as error:  # which is no OSError
            raise OSError(*error.args) from error
        if command.tty is not None:
            self.resize(command.tty)
        self.stdin = Keyboard(os.dup(self._descriptor))
        self._pumps.append(OutputPump(os.dup(self._descriptor), logs.stdout, budget))
        return [self._other] * 3

    def resize(self, size: Terminal) -> None:
        """Its programs get SIGWINCH."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("4H", size.rows, size.cols, 0, 0))

    async def drain(self) -> None:
        """To the end, as soon as nobody has the other side; then it hangs up."""
        self._let_go()
        await super().drain()
        self.close()

    def close(self) -> None:
        """Whoever still has the other side gets EIO from it."""
        self._let_go()
        super().close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _let_go(self) -> None:
        if self._other >= 0:
            os.close(self._other)
            self._other = -1


class Keyboard(StdinPipe):
    """The way into a terminal. Its end is the character that means end of file there: a terminal cannot be closed for
    reading alone.

    What is typed is cooked by a thread of the kernel, whose time is charged to nobody: up to 43 ns a byte, measured. So
    it goes in at 400 KiB/s at most."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._last = b"\n"
        self._resting = self._end_is_written = False

    def _write_piece(self) -> bool:
        if self._resting:
            self._loop.remove_writer(self._fd)
            return False
        piece = bytes(self._waiting[:_PIECE])
        written = os.write(self._fd, piece)
        del self._waiting[:written]
        self._last = piece[written - 1 : written]
        self._resting = True
        self._loop.call_later(_REST_SECONDS, self._go_on)
        return True

    def _go_on(self) -> None:
        self._resting = False
        if self._waiting and self._fd >= 0:
            self._push()

    def _end_input(self) -> None:
        if self._end_is_written:
            return self.close()
        self._end_is_written = True
        self._waiting += self._end_of_file()
        return self._push()

    def _end_of_file(self) -> bytes:
        """Behind half a line it has to come twice: the first one only ends the line."""
        try:
            modes = termios.tcgetattr(self._fd)
        except termios.error:  # it hung up
            return b""
        character: bytes = modes[6][termios.VEOF]
        in_line = modes[3] & termios.ICANON and self._last not in (b"\n", b"\r", character)
        return character * 2 if in_line else character
