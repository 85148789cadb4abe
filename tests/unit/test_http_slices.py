"""A body that nobody reads, in the smallest chunks that there are: it holds nobody up, and it has an end."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from app.serving import http_slices
from app.serving.http_slices import CHUNK_COST, FEW_PIECES, LEAST_BYTES, MOST_BYTES, SlicedHttp
from app.serving.pacing import SliceSize, TokenBucket
from tests.unit.test_http_bounds import GET, answer_to, echo, served

CHUNKED = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"1\r\nx\r\n"
LAST = GET + b"connection: close\r\n\r\n"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every piece that was parsed in one go, of all connections."""
    pieces: list[bytes] = []
    parse = SlicedHttp.parse

    def noted(self: SlicedHttp, data: bytes) -> None:
        pieces.append(data)
        parse(self, data)

    monkeypatch.setattr(SlicedHttp, "parse", noted)
    return pieces


async def refused(port: int, chunks: int) -> bool:
    """Sends a body in chunks of one byte after the answer is there, and one request more. Whether that was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(CHUNKED)
        await reader.readuntil(b"ok")
        with suppress(ConnectionError):
            writer.write(CHUNK * chunks + b"0\r\n\r\n" + LAST)
            await writer.drain()
            return b"ok" in await reader.read()
        return False
    finally:
        writer.close()


async def test_many_chunks_in_one_piece_are_parsed_in_slices(parsed: list[bytes]) -> None:
    async with served() as port:
        assert all(await asyncio.gather(*(refused(port, 60_000) for _ in range(3))))
    dense = [len(piece) for piece in parsed if piece.count(b"\r\n") > 2 * FEW_PIECES]
    assert sum(dense) > 3 * 300_000
    assert max(dense) <= 2 * LEAST_BYTES  # the first, as the head was one piece


async def test_chunks_that_get_small_after_large_ones_are_found_out(parsed: list[bytes]) -> None:
    async with served(echo) as port:
        large = b"30000\r\n" + bytes(0x30000) + b"\r\n"
        assert b"x" * 100_000 in await answer_to(port, CHUNKED + 4 * large, CHUNK * 100_000 + b"0\r\n\r\n")
    assert MOST_BYTES in map(len, parsed)
    dense = [len(piece) for piece in parsed if piece.count(b"\r\n") > 2 * FEW_PIECES]
    assert sum(dense) > 500_000
    assert sorted(dense)[-2] <= LEAST_BYTES < max(dense) <= MOST_BYTES  # one large slice, and never again


async def test_a_body_with_a_length_is_not_cut_up_for_its_lines(parsed: list[bytes]) -> None:
    body = b"\r\n" * 500_000
    async with served(echo) as port:
        answer = await answer_to(port, b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body), body)
    assert body in answer
    assert max(map(len, parsed)) > MOST_BYTES


async def test_a_body_in_slices_arrives_whole_and_so_does_what_follows() -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % (97 + n % 26) for n in range(100_000)) + b"0\r\n\r\n"
    async with served(echo) as port:
        answer = await answer_to(port, CHUNKED + chunks)
    assert bytes(97 + n % 26 for n in range(100_000)) in answer


async def test_chunks_of_a_body_that_nobody_reads_count_beside_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_slices, "DISCARDED", 1000 * CHUNK_COST)
    async with served() as port:
        assert await refused(port, 900)
        assert not await refused(port, 10_000)


async def test_extensions_of_chunks_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_slices, "DISCARDED", 3_000_000)
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED)
        await reader.readuntil(b"ok")
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                writer.write(b"1;" + b"a" * 30_000 + b"\r\nx\r\n")
                await writer.drain()
        writer.close()


async def test_all_bodies_that_nobody_reads_have_one_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_slices, "DISCARDED_TOGETHER", 1500 * CHUNK_COST)
    monkeypatch.setattr(http_slices, "DISCARDED_EACH_SECOND", 0)
    async with served() as port:
        assert await refused(port, 1000)
        assert not await refused(port, 1000)  # of another connection
        assert (await answer_to(port, LAST)).endswith(b"ok")  # who sends no such body is not concerned


def test_a_bucket_fills_up_to_what_it_holds() -> None:
    now = [0.0]
    bucket = TokenBucket(10, 20, clock=lambda: now[0])
    assert bucket.take(20)
    assert not bucket.take(1)
    now[0] = 1
    assert not bucket.take(11)
    assert bucket.take(10)
    now[0] = 100
    assert not bucket.take(21)
    assert bucket.take(20)


def test_a_slice_is_small_where_there_are_many_pieces() -> None:
    size = SliceSize(4, 32, few=10)
    assert [(size.learn(10), size.bytes) for _ in range(4)] == [(True, 8), (True, 16), (True, 32), (True, 32)]
    assert (size.learn(11), size.bytes) == (False, 4)
