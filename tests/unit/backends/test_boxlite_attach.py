"""One attach, against a server of a few lines."""

from __future__ import annotations

import asyncio

from websockets.asyncio.server import ServerConnection, serve

from app.backends.boxlite.attach import Chunk, Ended, Sockets
from app.backends.boxlite.connection_pool import ConnectionPool, ServerAddress
from app.backends.boxlite.timeouts import ServerTimeouts
from app.core.models import Channel


async def test_end_of_a_program_that_was_faster_than_our_first_frame_is_read() -> None:
    closed = asyncio.Event()

    async def ended_already(connection: ServerConnection) -> None:
        await connection.send(b"\x01out")
        await connection.send('{"type":"exit","exit_code":7}')
        await connection.close()
        closed.set()

    async with serve(ended_already, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        pool = ConnectionPool(ServerAddress.of(url), None, 1)
        sockets = Sockets(pool, ServerTimeouts())
        async with sockets.attached("/attach") as socket:
            await closed.wait()  # our Close has answered the server's
            await socket.resize(24, 80)
            await socket.end_stdin()
            frames = [frame async for frame in socket.frames()]
        await sockets.aclose()
        await pool.aclose()
    assert frames == [Chunk(Channel.STDOUT, b"out"), Ended(7)]


async def test_each_attach_has_a_key_of_its_own_also_one_that_was_prepared() -> None:
    keys: list[str] = []

    async def ends(connection: ServerConnection) -> None:
        assert connection.request is not None
        keys.append(connection.request.headers["Sec-WebSocket-Key"])
        await connection.send('{"type":"exit","exit_code":0}')

    async with serve(ends, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        pool = ConnectionPool(ServerAddress.of(url), None, 1)
        sockets = Sockets(pool, ServerTimeouts())
        for prepared in (False, True, False):
            async with asyncio.timeout(60):
                while prepared and sockets._spare is None:  # noqa: ASYNC110 - nobody is told of it
                    await asyncio.sleep(0)
            assert (sockets._spare is not None) is prepared
            async with sockets.attached("/attach") as socket:
                assert [frame async for frame in socket.frames()] == [Ended(0)]
        await sockets.aclose()
        await pool.aclose()
    assert len(set(keys)) == len(keys) == 3
