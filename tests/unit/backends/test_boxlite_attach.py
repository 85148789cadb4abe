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
