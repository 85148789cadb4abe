"""A test that closes its server leaves no connection behind, whenever a client comes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import warnings

import pytest


@pytest.mark.parametrize("turns", range(6))  # of the loop from the connection to the close
async def test_connection_that_comes_while_its_server_closes_is_closed(turns: int) -> None:
    """With asyncio's own way the third one fails."""

    def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname(), 60) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            server.close()
            await server.wait_closed()
            for _ in range(6):
                await asyncio.sleep(0)
            gc.collect()
            with contextlib.suppress(ConnectionResetError):  # a server that is closed resets what it has not accepted
                assert client.recv(1) == b""
    assert not [str(each.message) for each in told]
