"""What one run through the event loop writes to a connection leaves in one packet.

The head of an answer and its body are two writes, and so are the frames of a stream. uvloop hands each to the kernel at
once. Each costs a packet and wakes the client, which may take the processor from us before the next one is written.
"""

from __future__ import annotations

import asyncio
from typing import Any

AT_ONCE_BYTES = 16 * 1024  # what would make it more goes at once, and is not copied


class JoinedWrites:
    """A transport of the event loop, whose small writes are held until the end of this run through the loop. All else
    is done by the transport itself."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._flushing: asyncio.Handle | None = None
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Raises what the transport raises when it is closed."""
        if self._held_bytes + len(data) > AT_ONCE_BYTES or self.is_closing():
            self.flush()
            self._transport.write(data)
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if self._flushing is None:
            self._flushing = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes what is held."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        held, self._held, self._held_bytes = self._held, [], 0
        if held and not self.is_closing():
            self._transport.writelines(held)

    def get_write_buffer_size(self) -> int:
        return self._held_bytes + self._transport.get_write_buffer_size()

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """What is held is still sent."""
        self.flush()
        self._transport.close()
