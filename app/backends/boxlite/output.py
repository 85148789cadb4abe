"""From the frames of one socket after another into the logs: each byte once, and a hole where bytes are known to be
missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from app.backends.boxlite.attach import Chunk, Ended
from app.backends.boxlite.replay import BACKLOG, Tail
from app.core.backend import Logs
from app.core.models import Channel
from app.core.output import OutputLog

QUIET_SECONDS = 0.25
MOST_QUIETS = 20


class _Lane:
    """One channel. After a new socket its first bytes are a repetition of unknown length. They are held until there are
    as many as could be known, or nothing more comes for a moment: the server sends its backlog at once."""

    def __init__(self, log: OutputLog) -> None:
        self._log = log
        self._tail = Tail()
        self._held: bytearray | None = None
        self._patience = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def frames(self) -> int:
        return self._tail.frames

    def begin_socket(self) -> None:
        self.flush()
        if len(self._tail):
            self._held, self._patience = bytearray(), MOST_QUIETS
            self._wait()

    def take(self, data: bytes) -> None:
        if self._held is None:
            self._keep(data)
            return
        self._held += data
        if len(self._held) > BACKLOG + len(self._tail):
            self.flush()
        else:
            self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._quiet)

    def _quiet(self) -> None:
        self._patience -= 1
        if self._held and self._patience > 0 and self._tail.holds_beginning(bytes(self._held)):
            self._wait()
        else:
            self.flush()

    def flush(self) -> None:
        """What is held is all that was repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = bytes(self._held or b""), None
        if not held:
            return
        known = self._tail.overlap(held)
        if known is None:
            self._log.tear()
        if len(held) > (known or 0):
            self._keep(held[known or 0 :])

    def _keep(self, data: bytes) -> None:
        self._tail.add(data)
        self._log.append(data)


class Intake:
    def __init__(self, logs: Logs) -> None:
        self._lanes = {Channel.STDOUT: _Lane(logs.stdout), Channel.STDERR: _Lane(logs.stderr)}

    @property
    def frames(self) -> int:
        return max(lane.frames for lane in self._lanes.values())

    def begin_socket(self) -> None:
        for lane in self._lanes.values():
            lane.begin_socket()

    def flush(self) -> None:
        for lane in self._lanes.values():
            lane.flush()

    async def take(self, frames: AsyncIterator[Chunk | Ended]) -> int:
        """Until the exit frame: its code. Raises AttachCut, and then nothing that came is lost."""
        try:
            async for frame in frames:
                if isinstance(frame, Ended):
                    return frame.code
                self._lanes[frame.channel].take(frame.data)
        finally:
            self.flush()
        raise AssertionError("frames ended without an exit")
