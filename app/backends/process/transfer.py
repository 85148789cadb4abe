"""The near end of a file agent's pipe: one direction, non-blocking, and never waiting for ever.

A neighbour in the sandbox may stop the agent (kill(-1, SIGSTOP)), so silence has a bound.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Self

from app.backends.process.pipes import PipeBudget
from app.core.errors import BackendTimeout

PIECE = 256 * 1024
_JOINED = 64 * 1024
_SILENCE_SECONDS = 30.0


async def until_ready(descriptor: int, seconds: float, *, to_write: bool = False) -> None:
    """Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    (loop.add_writer if to_write else loop.add_reader)(descriptor, ready.set)
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    finally:
        (loop.remove_writer if to_write else loop.remove_reader)(descriptor)


class Transfer:
    """As a context manager it closes itself. `grow` takes a bigger pipe if there is one left."""

    def __init__(self, descriptor: int, budget: PipeBudget) -> None:
        os.set_blocking(descriptor, False)
        self._fd, self._budget, self._grown = descriptor, budget, False
        self._joined = bytearray()

    def grow(self) -> Self:
        if not self._grown and self._fd >= 0:
            self._grown = self._budget.grow(self._fd)
        return self

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._budget.left += self._grown

    async def _ready(self, *, to_write: bool = False) -> None:
        try:
            await until_ready(self._fd, _SILENCE_SECONDS, to_write=to_write)
        except TimeoutError:
            raise BackendTimeout(
                "process",
                f"nothing moved for {_SILENCE_SECONDS:g} seconds: something in the sandbox stopped the transfer",
            ) from None

    # --- out of the sandbox

    async def some(self, most: int = PIECE) -> bytes:
        """Returns some bytes, or b"" at the end. Raises BackendTimeout."""
        while True:
            try:
                return os.read(self._fd, most)
            except BlockingIOError:
                await self._ready()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """What `some` returns, until the end. A generator would have to be closed where a reader needs no more."""
        piece = await self.some()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def pieces(self, size: int) -> AsyncIterator[bytes]:
        """Yields `size` bytes in all, and fewer only if the end comes early. Raises BackendTimeout."""
        while size and (piece := await self.some(min(size, PIECE))):
            size -= len(piece)
            yield piece

    # --- into it

    async def put(self, data: bytes) -> bool:
        """Writes bytes. Returns False when nobody reads any more. Small pieces wait for others, or for `flush`. Raises
        BackendTimeout."""
        if len(self._joined) + len(data) < _JOINED:
            self._joined += data
            return True
        return await self.flush() and await self._push(data)

    async def flush(self) -> bool:
        joined, self._joined = self._joined, bytearray()
        return await self._push(joined)

    async def _push(self, data: bytes | bytearray) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await self._ready(to_write=True)
            except BrokenPipeError:
                return False
        return True
