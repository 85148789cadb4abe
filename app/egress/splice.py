"""Moves bytes between two sockets in both directions until both have ended.

One buffer of the process serves all connections: what was received is sent at once. Only what the other side does not
take is kept, and then nothing more is received for it. So an idle connection holds no memory.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from app.egress.turns import SandboxTurns

LARGE, SMALL = 256 * 1024, 16 * 1024  # bytes that are received at once
KEPT = 32 * 1024 * 1024  # of the whole process; above it, connections receive SMALL pieces
KEPT_PER_SANDBOX = 4 * 1024 * 1024
_buffer = memoryview(bytearray(LARGE))


class KeptBytes:
    """Bytes that were received, and that the other side has not taken yet. `whole` counts those of all sandboxes."""

    def __init__(self, most: int, whole: KeptBytes | None = None) -> None:
        self.count, self._most, self._whole = 0, most, whole

    def add(self, count: int) -> None:
        self.count += count
        if self._whole is not None:
            self._whole.add(count)

    @property
    def is_much(self) -> bool:
        return self.count > self._most or (self._whole is not None and self._whole.is_much)


class Splice:
    """`count` is called with the bytes sent by `inside`, and sent by `outside`; it may raise, which ends the splice."""

    def __init__(
        self,
        turns: SandboxTurns,
        inside: socket.socket,
        outside: socket.socket,
        kept: KeptBytes,
        count: Callable[[int, int], None],
    ) -> None:
        self._turns = turns
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._directions = (
            _Direction(self, turns, inside, outside, kept, lambda size: count(size, 0)),
            _Direction(self, turns, outside, inside, kept, lambda size: count(0, size)),
        )

    async def run(self) -> None:
        """Raises OSError when a side is reset, and what `count` raises."""
        try:
            for direction in self._directions:
                direction.begin()
            await self._end
        finally:
            for direction in self._directions:
                direction.stop()

    def ended(self) -> None:
        if all(direction.is_over for direction in self._directions) and not self._end.done():
            self._end.set_result(None)

    def failed(self, error: Exception) -> None:
        """Nothing more is read: the kernel tells of an error once, and then of an orderly end."""
        for direction in self._directions:
            direction.stop()
        if not self._end.done():
            self._end.set_exception(error)


class _Direction:
    def __init__(
        self,
        splice: Splice,
        turns: SandboxTurns,
        source: socket.socket,
        target: socket.socket,
        kept: KeptBytes,
        count: Callable[[int], None],
    ) -> None:
        self._splice, self._turns, self._kept, self._count = splice, turns, kept, count
        self._source, self._target = source, target
        self._from, self._to = source.fileno(), target.fileno()
        self._rest = memoryview(b"")
        self.is_over = False

    def begin(self) -> None:
        self._turns.read(self._from, self._receive)

    def stop(self) -> None:
        self._turns.read(self._from, None)
        self._turns.write(self._to, None)
        self._keep(memoryview(b""))

    def _receive(self) -> None:
        try:
            size = self._source.recv_into(_buffer, SMALL if self._kept.is_much else LARGE)
            if not size:
                self._finish()
                return
            self._count(size)
            sent = self._send(_buffer[:size])
        except BlockingIOError:
            return
        except Exception as error:  # also what `count` raises: whoever waits for the end gets it
            self._splice.failed(error)
            return
        if sent < size:
            self._keep(memoryview(bytes(_buffer[sent:size])))
            self._turns.read(self._from, None)
            self._turns.write(self._to, self._flush)

    def _send(self, data: memoryview) -> int:
        try:
            return self._target.send(data)
        except BlockingIOError:
            return 0

    def _flush(self) -> None:
        try:
            self._keep(self._rest[self._send(self._rest) :])
        except OSError as error:
            self._splice.failed(error)
            return
        if not self._rest:
            self._turns.write(self._to, None)
            self._turns.read(self._from, self._receive)

    def _keep(self, rest: memoryview) -> None:
        """A rest holds the memory of what it is a rest of, so that counts until nothing is left."""
        before, self._rest = self._held, rest
        after = self._held
        if before != after:
            self._kept.add(after - before)

    @property
    def _held(self) -> int:
        return len(cast(bytes, self._rest.obj)) if self._rest else 0

    def _finish(self) -> None:
        """The source has ended, and so does the target's input. The other direction goes on."""
        self._turns.read(self._from, None)
        self.is_over = True
        self._target.shutdown(socket.SHUT_WR)
        self._splice.ended()
