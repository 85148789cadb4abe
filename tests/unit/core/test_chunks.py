"""Bytes taken out of chunks in other sizes."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from app.core.chunks import ChunkReader
from tests.unit.core.tar_support import driven, each


@given(st.lists(st.binary(max_size=9)), st.lists(st.integers(0, 12)))
def test_every_size_is_given_until_the_end(chunks: list[bytes], sizes: list[int]) -> None:
    whole = b"".join(chunks)

    async def check() -> None:
        reader, at = ChunkReader(each(chunks)), 0
        for size in sizes:
            assert await reader.exactly(size) == whole[at : at + size]
            at = min(at + size, len(whole))
            assert reader.taken == at
        left = b""
        while piece := await reader.piece(5):
            assert len(piece) <= 5
            left += piece
        assert left == whole[at:]
        assert await reader.piece(5) == await reader.exactly(5) == b""

    driven(check())


def test_a_whole_chunk_is_passed_on_without_a_copy() -> None:
    chunk = bytes(1000)
    assert asyncio.run(ChunkReader(each([chunk])).piece(5000)) is chunk
