"""Bytes between two sockets: whole, in order, with back pressure and half-closed ends."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from app.egress import splice
from tests.unit.egress.support import NAME, echo, reset, site

RAW = [{"host": NAME, "raw": True}]
MANY = 32 * 1024 * 1024


async def test_many_bytes_arrive_whole_in_both_directions_at_once() -> None:
    async with site(echo, rules=RAW) as at:
        reader, writer = await at.connect()
        piece = os.urandom(1024 * 1024)

        async def write() -> None:
            for _ in range(MANY // len(piece)):
                writer.write(piece)
                await writer.drain()
            writer.write_eof()

        writing = asyncio.create_task(write())
        got = hashlib.sha256()
        while data := await reader.read(1024 * 1024):
            got.update(data)
        await writing
        assert got.hexdigest() == hashlib.sha256(piece * (MANY // len(piece))).hexdigest()
        event = await at.gateway.event()
        assert (event["bytes_sent"], event["bytes_received"]) == (MANY, MANY)
        assert at.network.kept.count == at.network.shared.kept.count == 0


async def test_program_may_end_before_the_host_answers() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(b"after the end")
        writer.close()

    async with site(serve, rules=RAW) as at:
        assert await at.ask(b"question") == b"after the end"


async def test_host_may_end_before_the_program_does() -> None:
    heard = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        heard.set_result(await reader.read())
        writer.close()

    async with site(serve, rules=RAW) as at:
        reader, writer = await at.connect()
        assert await reader.read() == b""
        writer.write(b"after the end")
        writer.write_eof()
        assert await asyncio.wait_for(heard, 60) == b"after the end"


async def test_host_that_resets_resets_the_program() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        reset(writer)

    async with site(serve, rules=RAW) as at:
        reader, writer = await at.connect()
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert (await at.gateway.event())["verdict"] == "allowed"


async def test_program_that_resets_resets_the_host() -> None:
    ended = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))
        try:
            ended.set_result(await reader.read())
        except ConnectionResetError:
            ended.set_result("reset")
        writer.close()

    async with site(serve, rules=RAW) as at:
        reader, writer = await at.connect()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        reset(writer)
        assert await asyncio.wait_for(ended, 60) == "reset"


async def test_side_that_does_not_read_stops_the_other() -> None:
    """What is between them is bounded: one piece here, and the buffers of four sockets."""
    released = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        while data := await reader.read(1024 * 1024):
            writer.write(len(data).to_bytes(4, "big"))
        writer.close()

    async with site(serve, rules=RAW) as at:
        loop = asyncio.get_running_loop()
        with at.unconnected() as program:
            await loop.sock_connect(program, ("127.77.0.1", at.port))
            taken = 0
            while taken < 512 * 1024 * 1024:
                try:
                    async with asyncio.timeout(2):
                        await loop.sock_sendall(program, b"x" * 65536)
                except TimeoutError:
                    break
                taken += 65536
            assert 0 < taken < 32 * 1024 * 1024
            assert at.network.kept.count <= splice.LARGE
            released.set()
            program.shutdown(1)
            heard = 0
            while size := await loop.sock_recv(program, 4):
                heard += int.from_bytes(size, "big")
            assert heard >= taken
        await at.gateway.event()
        assert at.network.kept.count == at.network.shared.kept.count == 0


def test_kept_bytes_of_all_sandboxes_make_pieces_small() -> None:
    whole = splice.KeptBytes(100)
    one, other = splice.KeptBytes(70, whole), splice.KeptBytes(70, whole)
    one.add(60)
    assert not one.is_much
    other.add(60)
    assert one.is_much and other.is_much
    other.add(-60)
    one.add(20)
    assert one.is_much and not other.is_much
