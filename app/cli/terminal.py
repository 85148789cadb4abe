"""The caller's terminal while a program in a sandbox uses it: each key goes to the program unchanged."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import termios
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

DESCRIPTOR = 0
USUAL = {"rows": 24, "cols": 80}  # of a terminal that does not know its size
# Nothing of ours reacts to these, and what they end would leave the terminal without echo and line ends.
# Not SIGSEGV, SIGBUS, SIGFPE and SIGILL: after a real one, Python would run the same instruction again, for ever.
DEADLY = (
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO),
    *(signal.SIGABRT, signal.SIGXCPU, signal.SIGTRAP, signal.SIGSYS),
)
OUTPUT = 1

Size = dict[str, int]


def there() -> bool:
    return os.isatty(DESCRIPTOR)


def size() -> Size:
    """The size of the terminal. Raises OSError when stdin is not a terminal."""
    found = os.get_terminal_size(DESCRIPTOR)
    return {"rows": found.lines or USUAL["rows"], "cols": found.columns or USUAL["cols"]}


class DetachKeys:
    """Ctrl-P Ctrl-Q. A Ctrl-P waits for the key after it; `release` gives it to the program when none comes. Ctrl-Q as
    the next key detaches even then."""

    FIRST, SECOND = b"\x10", b"\x11"

    def __init__(self) -> None:
        self._held = b""
        self._armed = False  # the last key was the first one

    def press(self, keys: bytes) -> tuple[bytes, bool]:
        """The keys for the program, and whether it is left. What comes after that is nobody's."""
        if not keys:
            return b"", False
        if self._armed and keys.startswith(self.SECOND):
            return b"", True
        before, found, _ = (self._held + keys).partition(self.FIRST + self.SECOND)
        self._armed = keys.endswith(self.FIRST)
        self._held = self.FIRST if self._armed and not found else b""
        return (before if found else before.removesuffix(self._held)), bool(found)

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def release(self) -> bytes:
        held, self._held = self._held, b""
        return held


class Raw:
    """A block of `with Raw(known, resized, undo)` passes every key through, and calls `resized` for each size but
    `known`. However the block is left, also by a deadly signal or the end of the interpreter, the terminal is restored.
    After a deadly signal the bytes of `undo` are written to it too."""

    def __init__(self, known: Size, resized: Callable[[Size], None], undo: Callable[[], bytes]) -> None:
        self._known = known
        self._undo = undo
        self._resized = resized
        self._before: list[Any] | None = None
        self._deadly: list[signal.Signals] = []

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(DESCRIPTOR)
        atexit.register(self._restore)
        self._deadly = [number for number in DEADLY if signal.getsignal(number) is signal.SIG_DFL]
        for number in self._deadly:
            signal.signal(number, self._die)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._look)
        loop.add_signal_handler(signal.SIGCONT, self._go_on)
        self._go_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGWINCH, signal.SIGCONT):
            loop.remove_signal_handler(number)
        for number in self._deadly:
            signal.signal(number, signal.SIG_DFL)
        self._restore()
        atexit.unregister(self._restore)

    def _go_on(self) -> None:
        """At the beginning, and after a stop in which a shell had the terminal."""
        with contextlib.suppress(termios.error):  # it disconnected, and SIGHUP ends us
            tty.setraw(DESCRIPTOR, termios.TCSANOW)
        self._look()

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # as above
            found = size()
            if found != self._known:
                self._known = found
                self._resized(found)

    def _restore(self) -> None:
        if self._before is not None:
            with contextlib.suppress(termios.error):  # as above
                # What the program made the terminal answer, and nobody has read, must not be typed into a shell.
                termios.tcflush(DESCRIPTOR, termios.TCIFLUSH)
                # At once: to wait for a terminal that takes no output could mean for ever.
                termios.tcsetattr(DESCRIPTOR, termios.TCSANOW, self._before)
            self._before = None

    def _die(self, number: int, _: object) -> None:
        if os.isatty(OUTPUT):
            with contextlib.suppress(OSError):  # it disconnected, or takes nothing
                was = os.get_blocking(OUTPUT)
                os.set_blocking(OUTPUT, False)  # a terminal that takes no output must not hold us
                try:
                    os.write(OUTPUT, self._undo())
                finally:
                    os.set_blocking(OUTPUT, was)  # others share it
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
