"""Moves the frames of one socket after another into the logs: each byte once, and a gap where bytes are known to be
missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from app.backends.boxlite.attach import Chunk, Ended
from app.backends.boxlite.replay import BACKLOG, CHUNK, BacklogMatcher, Overlap, RecentBytes
from app.core.backend import Logs
from app.core.models import Channel
from app.core.output import OutputLog

FEW, MANY = 4, 20  # moments: after so many what still comes is live output; so long the rest of a repetition may take


class _Lane:
    """One channel. After a new socket its first bytes are a repetition of unknown length: they are held until it is
    known what of them is new, which is mostly with the first byte that is."""

    def __init__(self, log: OutputLog, quiet: float) -> None:
        self._log, self._quiet = log, quiet
        self._tail = RecentBytes()
        self._repetition: BacklogMatcher | None = None
        self._came = False
        self._moments = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pieces(self) -> int:
        return self._tail.pieces

    def begin_socket(self) -> None:
        self.flush()
        if len(self._tail):
            self._repetition, self._moments = self._tail.repetition(), 0

    def take(self, data: bytes) -> None:
        if self._repetition is None:
            self._keep(data)
            return
        self._came = True
        known = self._repetition.take(data)
        if known is None and len(self._repetition.held) > BACKLOG + CHUNK:
            known = self._repetition.settle(patient=False)
        if known is not None:
            self._release(self._repetition, known)
        elif self._timer is None:
            self._wait()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._quiet, self._moment)

    def _moment(self) -> None:
        self._moments += 1
        came, self._came = self._came, False
        if self._repetition is None:
            return
        known = None
        if not came or self._moments >= FEW:
            known = self._repetition.settle(patient=self._moments < MANY)
        if known is not None:
            self._release(self._repetition, known)
        else:
            self._wait()

    def flush(self) -> None:
        """Called when nothing more comes on this socket."""
        if self._repetition is not None and self._repetition.held:
            self._release(self._repetition, self._repetition.end())

    def end(self) -> None:
        self.flush()
        self._tail = RecentBytes()

    def _release(self, repetition: BacklogMatcher, known: Overlap) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._repetition = None
        if known.has_gap:
            self._log.add_gap()
        if len(repetition.held) > known.size:
            self._keep(bytes(repetition.held[known.size :]))

    def _keep(self, data: bytes) -> None:
        self._tail.add(data)
        self._log.append(data)


class OutputReader:
    def __init__(self, logs: Logs, quiet: float) -> None:
        self._lanes = {Channel.STDOUT: _Lane(logs.stdout, quiet), Channel.STDERR: _Lane(logs.stderr, quiet)}

    @property
    def pieces(self) -> int:
        """Pieces of the channel that had more."""
        return max(lane.pieces for lane in self._lanes.values())

    def begin_socket(self) -> None:
        for lane in self._lanes.values():
            lane.begin_socket()

    def flush(self) -> None:
        for lane in self._lanes.values():
            lane.flush()

    def end(self) -> None:
        """Called when there are no more sockets. The execution is kept, and up to a MiB of its last output that was
        needed for matching is dropped."""
        for lane in self._lanes.values():
            lane.end()

    async def take(self, frames: AsyncIterator[Chunk | Ended]) -> int:
        """Takes frames until the exit frame, and returns its code. Raises AttachCut, and then no frame that came is
        lost."""
        try:
            async for frame in frames:
                if isinstance(frame, Ended):
                    return frame.code
                self._lanes[frame.channel].take(frame.data)
        finally:
            self.flush()
        raise AssertionError("frames ended without an exit")
