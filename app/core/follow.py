"""Readers of an execution's output. A reader gets what is stored from an offset on, then live output, and a gap for
bytes that are no longer stored."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass

from app.core.models import Channel
from app.core.output import CHUNK, OutputLog


@dataclass(frozen=True, slots=True)
class OutputPiece:
    channel: Channel
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class OutputGap:
    """Bytes from `begin` up to, not including, `end` are no longer stored. If `end` is None, the runtime lost bytes
    here. Nobody knows how many, and they have no offsets."""

    channel: Channel
    begin: int
    end: int | None


class Follower:
    """One reader of both channels: first what is stored from the given offsets, then live, then None for the end."""

    def __init__(self, logs: dict[Channel, OutputLog], offsets: dict[Channel, int]) -> None:
        self.offsets = dict(offsets)
        self._logs = logs
        self._changed = asyncio.Event()
        self._turn = 0
        self._gaps = {channel: bisect_left(log.gaps, self.offsets[channel]) for channel, log in logs.items()}

    def __enter__(self) -> Follower:
        for log in self._logs.values():
            log.watch(self._changed.set)
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._logs.values():
            log.unwatch(self._changed.set)

    def poll(self) -> OutputPiece | OutputGap | None:
        """Returns what is there now, from the channels in turn so that neither starves the other. None when there is
        nothing."""
        channels = tuple(self._logs)
        for step in range(len(channels)):
            channel = channels[(self._turn + step) % len(channels)]
            item = self._next_of(channel)
            if item is not None:
                self._turn = (self._turn + step + 1) % len(channels)
                return item
        return None

    def _next_of(self, channel: Channel) -> OutputPiece | OutputGap | None:
        log, offset = self._logs[channel], self.offsets[channel]
        if offset < log.start:
            self.offsets[channel] = log.start
            self._gaps[channel] = bisect_left(log.gaps, log.start)
            return OutputGap(channel, offset, log.start)
        limit = CHUNK
        if self._gaps[channel] < len(log.gaps):
            gap = log.gaps[self._gaps[channel]]
            if gap == offset:
                self._gaps[channel] += 1
                return OutputGap(channel, gap, None)
            limit = min(limit, gap - offset)
        data = log.read(offset, limit)
        if data:
            self.offsets[channel] = offset + len(data)
            return OutputPiece(channel, offset, data)
        return self._next_of(channel) if offset < log.start else None

    async def next(self) -> OutputPiece | OutputGap | None:
        """Returns the next piece as soon as there is one. None when both channels are closed and read to the end."""
        while True:
            self._changed.clear()
            item = self.poll()
            if item is not None:
                return item
            if all(log.closed for log in self._logs.values()):
                return None
            await self._changed.wait()
