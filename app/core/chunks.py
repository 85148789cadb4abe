"""Bytes that come in chunks of any size, taken in the sizes that a reader wants."""

from __future__ import annotations

from collections.abc import AsyncIterator


class ChunkReader:
    """`taken`: how many bytes were given out."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk, self._at = b"", 0
        self.taken = 0

    async def piece(self, most: int) -> bytes:
        """1 to `most` bytes, or b"" at the end. A whole chunk is passed on without a copy."""
        while self._at == len(self._chunk):
            chunk = await anext(self._chunks, None)
            self._chunk, self._at = chunk or b"", 0
            if chunk is None:
                return b""
        piece = self._chunk[self._at : self._at + most]
        self._at += len(piece)
        self.taken += len(piece)
        return piece

    async def exactly(self, size: int) -> bytes:
        """Fewer only where the end comes before. They are few: pieces are joined one by one."""
        data = await self.piece(size) if size else b""
        while len(data) < size and (piece := await self.piece(size - len(data))):
            data += piece
        return data
