"""A server that lies over a WebSocket: frames, handshakes, redirects; and where we connect to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from app.backends.boxlite.attach import FRAME_BYTES, AttachCut, AttachRefused, Sockets
from app.backends.boxlite.connection_pool import ConnectionPool, ServerAddress
from app.backends.boxlite.timeouts import ServerTimeouts
from tests.boxlite.answering import raw_server
from tests.boxlite.double import Attach, Route
from tests.boxlite.double.websocket import accept_key
from tests.boxlite.rig import QUICK, quick, rig, start


@dataclass
class Listener:
    """Takes connections, reads their heads, and answers what it is told to, once each."""

    port: int = 0
    answer: bytes = b""
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    listener = Listener()
    server = await asyncio.start_server(listener, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    async with server:
        yield listener


@asynccontextmanager
async def sockets_of(url: str, timeouts: ServerTimeouts = QUICK, key: str | None = None) -> AsyncIterator[Sockets]:
    pool = ConnectionPool(ServerAddress.of(url), key, 256)
    sockets = Sockets(pool, timeouts)
    try:
        yield sockets
    finally:
        await sockets.aclose()
        await pool.aclose()


JUNK: tuple[str | bytes, ...] = (
    b"", b"\x01", b"\x00zero", b"\x03three", b"\xff\xff", "", "{", "[]", "null", "7", '"exit"', "[" * 100_000,
    '{"type":"error","message":"' + "x" * 1000 + '"}', '{"type":7}', '{"type":"exits","exit_code":0}',
    '{"exit_code":0}', '{"type":"resize"}', '{"a":' + "9" * 5000 + "}",
)  # fmt: skip


async def test_frames_that_are_none_are_passed_over() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(first=JUNK), times=1)
        run = await start(sandbox, "sh", "-c", "echo out; echo err >&2")
        assert (await run.end()).code == 0 and (run.out, run.err) == (b"out\n", b"err\n")
        assert len(r.double.sent(Route.ATTACH)) == 2


async def test_a_frame_that_is_too_large_cuts_the_socket_and_not_the_execution() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(first=(b"\x01" * (FRAME_BYTES + 1),)), times=2)
        run = await start(sandbox, "sh", "-c", "echo out")
        assert (await run.end()).code == 0 and run.out == b"out\n"
        assert len(r.double.sent(Route.ATTACH)) == 4


@pytest.mark.parametrize("frame", [b"\x81\x02\xff\xfe", b"\xc1\x00", b"\x83\x00", b"\x81\xff" + b"\xff" * 8])
async def test_bytes_that_are_no_frames_cut_the_socket(frame: bytes) -> None:
    """Broken UTF-8, reserved bits, an unknown kind, a mask and a length without end."""
    upgrade = b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
        writer.write(upgrade + accept_key(key).encode() + b"\r\n\r\n" + frame)
        await reader.read()

    async with raw_server(talk) as url, sockets_of(url) as sockets:
        with pytest.raises(AttachCut):
            async with asyncio.timeout(60), sockets.attached("/v1/x") as socket:
                async for _ in socket.frames():
                    pass


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n", AttachRefused),
        (b"HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n", AttachRefused),
        (b"HTTP/1.1 101 x\r\n\r\n", AttachCut),
        (b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: no\r\n\r\n", AttachCut),
        (b"SSH-2.0-OpenSSH\r\n", AttachCut),
        (b"HTTP/1.1 101 x\r\n" + b"x-a: b\r\n" * 10_000, AttachCut),
        (b"HTTP/1.1 101 x\r\nx: " + b"b" * 1_000_000, AttachCut),
        (b"", AttachCut),  # stalls
    ],
)
async def test_a_handshake_that_is_none(answer: bytes, error: type[Exception]) -> None:
    async with listening() as listener:
        listener.answer = answer
        async with sockets_of(f"http://127.0.0.1:{listener.port}", quick(opening=2), "k") as sockets:
            with pytest.raises(error):
                async with asyncio.timeout(60), sockets.attached("/v1/x"):
                    pass
        assert b"authorization: bearer k" in listener.heads[0].lower()


@pytest.mark.parametrize("path", ["/elsewhere", ""])
async def test_a_redirect_of_the_websocket_is_not_followed(path: str) -> None:
    """Not to another host, and not on the same one."""
    async with listening() as listener, listening() as other:
        place = path or f"http://127.0.0.1:{other.port}/x"
        listener.answer = f"HTTP/1.1 302 x\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n".encode()
        async with sockets_of(f"http://127.0.0.1:{listener.port}") as sockets:
            with pytest.raises(AttachRefused) as caught:
                async with sockets.attached("/v1/x"):
                    pass
        assert caught.value.status == 302 and listener.connections == 1 and other.connections == 0


@pytest.mark.parametrize("base", ["", "/base/http"])
async def test_the_websocket_has_the_servers_host_and_path(base: str) -> None:
    """Its scheme and port: `test_addresses.py`; over TLS: `test_connection.py`."""
    async with listening() as listener:
        listener.answer = b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n"
        async with sockets_of(f"http://127.0.0.1:{listener.port}{base}") as sockets:
            with pytest.raises(AttachRefused):
                async with sockets.attached("/v1/x"):
                    pass
        lines = listener.heads[0].decode().split("\r\n")
        assert lines[0] == f"GET {base}/v1/x HTTP/1.1" and f"host: 127.0.0.1:{listener.port}" in lines


async def test_a_server_of_tls_is_spoken_to_in_tls() -> None:
    async with listening() as listener:
        async with sockets_of(f"https://127.0.0.1:{listener.port}", quick(opening=0.3)) as sockets:
            with pytest.raises(AttachCut):
                async with sockets.attached("/v1/x"):
                    pass
        assert not listener.heads
        assert listener.connections == 1 and not listener.heads  # a hello of TLS has no end of a head
