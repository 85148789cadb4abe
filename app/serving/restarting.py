"""A process that the supervisor starts again when it has died: at once, and slower when it keeps dying."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

from app.serving.messages import say

_SOON_SECONDS = 60.0
_FREE_DEATHS = 3  # within that time
_SLOWEST_SECONDS = 10.0
_FAILED_SECONDS = 1.0


class StartFailed(Exception):
    """`str(error)` is a sentence for people."""


class RestartedProcess:
    """Starts the process, by `start`, which raises StartFailed. `name` is for messages, such as "the launcher", and
    `loss` says what its end means."""

    def __init__(
        self,
        name: str,
        loss: str,
        start: Callable[[], subprocess.Popen[bytes]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._loss, self._start, self._clock = name, loss, start, clock
        self._deaths: list[float] = []
        self._not_before = 0.0
        self.process = start()

    def revive(self) -> float | None:
        """Starts it again if it has ended and its time has come. Returns after how many seconds to call this again, or
        None: when a child of this process has ended."""
        status = self.process.poll()
        if status is None:
            return None
        now = self._clock()
        if now < self._not_before:
            return self._not_before - now
        say(f"{self._name} ended with {status}: starting another; {self._loss}")
        self._deaths = [when for when in self._deaths if now - when < _SOON_SECONDS] + [now]
        if len(self._deaths) > _FREE_DEATHS:
            self._not_before = now + min(_SLOWEST_SECONDS, 0.1 * 2 ** len(self._deaths))
        try:
            self.process = self._start()
        except StartFailed as error:
            say(str(error))
            return _FAILED_SECONDS
        return None
