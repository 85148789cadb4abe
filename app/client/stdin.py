"""Bytes on their way to a program's stdin. Bytes that the service may not have accepted yet are kept, so that a broken
connection loses nothing: the next `start` frame says how many bytes arrived, and the rest is sent again."""

from __future__ import annotations

import asyncio
from collections import deque

from app.client.errors import ClientError

WINDOW = 256 * 1024  # waiting to be sent: enough to keep the connection busy
# Sent and not yet accepted: 1 MiB in the service, the rest in socket buffers (tcp_rmem and tcp_wmem allow 32 + 4 MiB).
KEPT = 40 * 1024 * 1024


class Outgoing:
    """Bytes between one writer (`put`, `finish`) and one sender at a time (`take`), which may have to go back
    (`rewind`)."""

    def __init__(self) -> None:
        self.over = False
        self._sent: deque[bytes] = deque()
        self._unsent: deque[bytes] = deque()
        self._first_kept = 0
        self._position: int | None = None  # None until the service said where this writer begins
        self._waiting = 0
        self._finished = False
        self._changed = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Returns when less than the window waits, or at once when the bytes are no longer needed."""
        if self.over or not data:
            return
        self._unsent.append(data)
        self._waiting += len(data)
        self._changed.set()
        while self._waiting > WINDOW and not self.over:
            self._changed.clear()
            await self._changed.wait()

    async def taken(self) -> None:
        """Returns when all that was put is on its way, or nobody wants it any more."""
        while self._waiting and not self.over:
            self._changed.clear()
            await self._changed.wait()

    def finish(self) -> None:
        """Ends the file after everything that was put."""
        self._finished = True
        self._changed.set()

    def discard(self) -> None:
        """The program reads no more. Everything that is put from now on is dropped, as in `cat | true`."""
        self.over = True
        self._sent.clear()
        self._unsent.clear()
        self._changed.set()

    def rewind(self, accepted: int) -> None:
        """Goes back: the next `take` begins after the first `accepted` bytes."""
        if self._position is None:
            self._position = self._first_kept = accepted
        if not self._first_kept <= accepted <= self._position:
            raise ClientError(
                f"stdin cannot be resumed: the service has {accepted} bytes, and {self._position} were sent"
            )
        while self._position > accepted:
            piece = self._sent.pop()
            again = min(len(piece), self._position - accepted)
            if again < len(piece):
                self._sent.append(piece[:-again])
            self._unsent.appendleft(piece[-again:])
            self._position -= again
            self._waiting += again

    async def take(self) -> bytes | None:
        """Returns the next piece. None at the end of the file, or when no more is needed."""
        while not self._unsent:
            if self._finished or self.over:
                return None
            self._changed.clear()
            await self._changed.wait()
        piece = self._unsent.popleft()
        self._sent.append(piece)
        self._waiting -= len(piece)
        self._position = (self._position or 0) + len(piece)
        while self._position - self._first_kept - len(self._sent[0]) > KEPT:
            self._first_kept += len(self._sent.popleft())
        self._changed.set()
        return piece
