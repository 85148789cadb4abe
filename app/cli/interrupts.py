"""The signals that reach this program while a command runs in a sandbox."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")
PASSED_ON = (signal.SIGINT, signal.SIGQUIT)  # what a terminal's keys send
ENDING = (signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 5.0


class Stopped(Exception):
    """A signal ended the work. `status` is the exit status of a program that died of it."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"stopped by a signal ({status})")


class Interrupts:
    """Passes every signal to the reaction of the current phase. Signals that were ignored from the start (`nohup`, a
    script's `&`) stay ignored. `status` is set when a signal has ended the work."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._react: Callable[[signal.Signals], None] = self._note
        self._installed: list[signal.Signals] = []

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (*PASSED_ON, *ENDING):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._arrived, number)
                self._installed.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in self._installed:
            loop.remove_signal_handler(number)

    def react(self, reaction: Callable[[signal.Signals], None] | None) -> None:
        """Sets what the next signals do. With None they are only noted."""
        self._react = reaction or self._note

    def end_with(self, number: signal.Signals) -> None:
        self.status = 128 + number

    def check(self) -> None:
        """Raises Stopped."""
        if self.status is not None:
            raise Stopped(self.status)

    def _arrived(self, number: signal.Signals) -> None:
        self._react(number)

    def _note(self, number: signal.Signals) -> None:
        self.end_with(number)

    async def wait_for(self, work: asyncio.Task[T], grace: float) -> T:
        """Waits for the result of the work even after a signal, since what a request has begun must be known to be
        undone. After a signal the work has `grace` seconds. A second signal ends the wait. Raises Stopped when the wait
        was ended."""
        loop = asyncio.get_running_loop()

        def give_up(number: signal.Signals) -> None:
            if self.status is None and grace:
                loop.call_later(grace, work.cancel)
            else:
                work.cancel()
            self.end_with(number)

        if self.status is not None:
            work.cancel()
        self.react(give_up)
        try:
            return await work
        except asyncio.CancelledError:
            self.check()
            raise
        finally:
            self.react(None)
