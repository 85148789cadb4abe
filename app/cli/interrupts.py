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
    """A signal ended the work. `status` is what a shell shows for a program that died of it."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"stopped by a signal ({status})")


class Interrupts:
    """Hands every signal to the reaction of the phase that is on. What was ignored from the start (`nohup`, a
    script's `&`) stays ignored. `status` is set once a signal is what will have ended us."""

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
        """What the next signals do; with None they are only noted."""
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
        """The work's result, signal or not: what a request began must be known to be undone. A signal gives it
        `grace` seconds, a second one none. Raises Stopped when it was given up."""
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
