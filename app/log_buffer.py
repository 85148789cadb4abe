"""Lines of the log that are written together, a moment after what they tell of.

A line takes 60 to 100 µs. Written at once behind an answer, it delays whatever the same client sends next, such as the
WebSocket for the command that it has just started.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

SECONDS = 0.02
MOST_LINES = 64  # as many take a slice of the loop's time


class LogBuffer:
    """Holds lines between `start` and `stop`. Before and after, each is written at once, so none is lost at the end of
    the service. A process that is killed loses those of the last 20 ms."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lines: list[Callable[[], object]] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Call it in the event loop."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        self._loop = None
        self.flush()

    def add(self, say: Callable[..., object], event: str, **fields: object) -> None:
        """`say` writes the line. Call it in the event loop, if it runs."""
        self._lines.append(partial(say, event, **fields))
        if self._loop is None or len(self._lines) >= MOST_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(SECONDS, self.flush)

    def flush(self) -> None:
        """Writes what is held. A line that cannot be written is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        for write in lines:
            with contextlib.suppress(OSError):  # the next one may find room
                write()
