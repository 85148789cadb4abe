"""Output of ended executions that is still in memory: so much for the whole service, shared fairly by sandboxes."""

from __future__ import annotations

from app.core.output import OutputLog
from app.core.retention import Retention

# What the smallest output counts for: its block on disk. It bounds how many small ones make room for a large one.
LEAST = 4096


class EndedOutput:
    """`size` in bytes. When it is used up, the sandbox that has the most moves its oldest output to its spill, where it
    reads as before. So no sandbox with less than an equal share loses its output because of others, even when the spill
    is full."""

    def __init__(self, size: int) -> None:
        self._logs = Retention[tuple[str, OutputLog]](size)

    @property
    def used(self) -> int:
        return self._logs.used

    def add(self, sandbox_id: str, log: OutputLog) -> None:
        """A log that is closed."""
        if log.spilled:  # all that memory has is there too
            log.leave_memory()
        if not log.in_memory:
            return
        self._logs.add(sandbox_id, (sandbox_id, log), max(log.in_memory, LEAST))
        while self._logs.full and (oldest := self._logs.next_to_go()):
            self._logs.remove(oldest[0], oldest)
            oldest[1].leave_memory()

    def discard(self, sandbox_id: str, log: OutputLog) -> None:
        """Its bytes are given back, wherever they are."""
        self._logs.remove(sandbox_id, (sandbox_id, log))
        log.discard()
