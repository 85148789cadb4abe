"""Output of ended executions that is still in memory: so much for the whole service, the oldest leaves first."""

from __future__ import annotations

from app.core.output import OutputLog


class EndedOutput:
    """`size` in bytes. What leaves memory lies in its sandbox's spill, and reads as before."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.used = 0
        self._logs: dict[OutputLog, int] = {}  # in the order of their ends, with the bytes of each

    def add(self, log: OutputLog) -> None:
        """A log that is closed."""
        if log.spilled:  # all that memory has is there too
            log.leave_memory()
        if not log.in_memory:
            return
        self._logs[log] = log.in_memory
        self.used += log.in_memory
        while self.used > self._size:
            oldest = next(iter(self._logs))
            self.remove(oldest)
            oldest.leave_memory()

    def remove(self, log: OutputLog) -> None:
        self.used -= self._logs.pop(log, 0)

    def discard(self, log: OutputLog) -> None:
        """Its bytes are given back, wherever they are."""
        self.remove(log)
        log.discard()
