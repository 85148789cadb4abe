"""What a viewer can do with a WebSocket: frames that cost it nothing end it, and hold nobody else up."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn

from app.core import timeslices
from app.serving import ws_bounds
from app.serving.http_bounds import BoundedHttp
from app.serving.ws_bounds import (
    FEW_FRAMES,
    FRAGMENTS,
    LEAST_BYTES,
    MOST_BYTES,
    SMALL_FRAMES_SAVED,
    UNREAD_BYTES,
    BoundedWebSocket,
)

TEXT, BINARY, CONT, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


def frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
    return bytes([(0x80 if fin else 0) | opcode]) + length + bytes(4) + data


class Viewer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def frame(self) -> tuple[int, bytes]:
        """The next frame of the server: opcode and payload."""
        async with asyncio.timeout(60):
            first, length = await self.reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack(">H", await self.reader.readexactly(2))
            return first & 15, await self.reader.readexactly(length)

    async def close(self) -> tuple[int, str]:
        """Code and reason of the server's close frame, whatever comes before it."""
        while True:
            opcode, data = await self.frame()
            if opcode == CLOSE:
                return struct.unpack(">H", data[:2])[0], data[2:].decode()


class Echo:
    """Sends back what it gets. `taking` lets it take messages; `ends` are its disconnects."""

    def __init__(self) -> None:
        self.taking = asyncio.Event()
        self.taking.set()
        self.ended = asyncio.Event()
        self.end: dict[str, Any] = {}
        self.send: Any = None

    async def __call__(self, _: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.send = send
        while True:
            await self.taking.wait()
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.end = message
                self.ended.set()
                return
            with suppress(OSError):
                await send({**message, "type": "websocket.send"})


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=BoundedHttp, ws=BoundedWebSocket, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve([listener]))
    async with asyncio.timeout(60):
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def viewing(port: int, headers: bytes = b"") -> AsyncIterator[Viewer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + headers + b"\r\n"
        )
        async with asyncio.timeout(60):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        yield Viewer(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


FLOODS = {
    "pings": (b"", frame(PING)),
    "pings with content": (b"", frame(PING, b"x" * 125)),
    "pongs": (b"", frame(PONG)),
    "empty continuations": (frame(BINARY, fin=False), frame(CONT, fin=False)),
    "empty texts": (b"", frame(TEXT)),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_frames_that_cost_nothing_end_the_stream_and_say_why(name: str, caplog: pytest.LogCaptureFixture) -> None:
    first, each = FLOODS[name]
    caplog.set_level(logging.WARNING, "uvicorn.error")
    async with served(Echo()) as port, viewing(port) as viewer:
        await viewer.send(first + each * (2 * SMALL_FRAMES_SAVED))
        code, reason = await viewer.close()
        await viewer.send(each * 20_000)
    assert code == 1008
    assert "a second" in reason or "fragments" in reason
    assert len(caplog.records) == 1, "nothing is parsed once it was refused"


async def test_a_client_that_pings_within_the_bound_has_each_ping_answered() -> None:
    async with served(Echo()) as port, viewing(port) as viewer:
        await viewer.send(b"".join(frame(PING, b"%d" % n) for n in range(SMALL_FRAMES_SAVED - 1)))
        assert [await viewer.frame() for _ in range(SMALL_FRAMES_SAVED - 1)] == [
            (PONG, b"%d" % n) for n in range(SMALL_FRAMES_SAVED - 1)
        ]


async def test_pings_of_a_client_that_does_not_read_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws_bounds, "SMALL_FRAMES_SAVED", 10**9)
    waiting, count = [0], [0]
    answer = BoundedWebSocket.handle_ping

    def measured(self: BoundedWebSocket) -> None:
        answer(self)
        count[0] += 1
        waiting[0] = max(waiting[0], self.transport.get_write_buffer_size())

    monkeypatch.setattr(BoundedWebSocket, "handle_ping", measured)
    pings = 200_000  # 25 MB of answers: more than the sockets' buffers take
    async with served(Echo()) as port, viewing(port) as viewer:
        for _ in range(pings // 1000):
            await viewer.send(frame(PING, b"x" * 125) * 1000)
        async with asyncio.timeout(90):  # the machine may be busy
            while count[0] < pings:  # noqa: ASYNC110 - the server counts, and has no event
                await asyncio.sleep(0.01)
        assert UNREAD_BYTES < waiting[0] <= UNREAD_BYTES + MOST_BYTES
        await viewer.send(frame(TEXT, b"there?"))
        while (await viewer.frame()) != (TEXT, b"there?"):
            pass


async def test_others_have_turns_between_messages_that_came_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeslices, "SECONDS", 0.0)  # each message uses up a slice
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    order: list[str] = []

    async def taking(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            order.append("message")
            if order.count("message") == 10:
                done.set()

    def other() -> None:
        order.append("other")
        if not done.is_set():
            loop.call_soon(other)

    async with served(taking) as port, viewing(port) as viewer:
        loop.call_soon(other)
        await viewer.send(frame(TEXT, b"x") * 10)
        async with asyncio.timeout(60):
            await done.wait()
    began = order.index("message")
    assert all("other" in order[at : at + 2] for at in range(began, len(order) - 2))


async def test_application_is_told_of_a_connection_without_a_turn_of_the_loop() -> None:
    turns: list[int] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        asyncio.get_running_loop().call_soon(turns.append, 1)
        assert (await receive())["type"] == "websocket.connect"
        turns.append(0)
        await send({"type": "websocket.accept"})
        await receive()

    async with served(app) as port, viewing(port):
        assert turns == [0, 1]


async def test_a_message_has_so_many_fragments_and_no_more() -> None:
    async with served(Echo()) as port, viewing(port) as viewer:
        middle = frame(CONT, b"x", fin=False)
        await viewer.send(frame(BINARY, b"x", fin=False) + middle * (FRAGMENTS - 2) + frame(CONT, b"y"))
        assert await viewer.frame() == (BINARY, b"x" * (FRAGMENTS - 1) + b"y")
        await viewer.send(frame(BINARY, b"x", fin=False) + middle * FRAGMENTS)
        assert await viewer.close() == (1008, f"a message may have at most {FRAGMENTS} fragments")


async def test_no_turn_of_the_loop_parses_more_than_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws_bounds, "SMALL_FRAMES_SAVED", 10**9)
    frames: list[int] = []  # in each turn
    parse, handle = BoundedWebSocket._parse_slice, BoundedWebSocket.handle_events

    def turn(self: BoundedWebSocket) -> None:
        frames.append(0)
        parse(self)

    def counted(self: BoundedWebSocket) -> None:
        frames[-1] += len(self.conn.events)
        handle(self)

    monkeypatch.setattr(BoundedWebSocket, "_parse_slice", turn)
    monkeypatch.setattr(BoundedWebSocket, "handle_events", counted)
    frames.append(0)  # the handshake
    async with served(Echo()) as port, viewing(port) as viewer:
        await viewer.send(frame(PONG) * 100_000 + frame(TEXT, b"end"))
        assert await viewer.frame() == (TEXT, b"end")
    assert sum(frames) >= 100_000
    assert max(frames) <= FEW_FRAMES + LEAST_BYTES / len(frame(PONG))


async def test_messages_that_are_not_taken_wait_with_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    received, take = [0], BoundedWebSocket.data_received

    def counted(self: BoundedWebSocket, data: bytes) -> None:
        received[0] += len(data)
        take(self, data)

    monkeypatch.setattr(BoundedWebSocket, "data_received", counted)
    app, each, count = Echo(), frame(BINARY, b"x" * 60_000), 400
    async with served(app) as port, viewing(port) as viewer, viewing(port) as other:
        app.taking.clear()
        viewer.writer.write(each * count)  # 24 MB
        for _ in range(200):  # in each of these round trips the server could read 256 KiB of it
            await other.send(frame(PING))
            assert (await other.frame())[0] == PONG
        before = received[0]
        app.taking.set()
        assert len(each) <= before < 1_000_000
        for _ in range(count):
            assert (await viewer.frame())[0] == BINARY


async def test_many_messages_in_one_piece_arrive_in_order() -> None:
    async with served(Echo()) as port, viewing(port) as viewer:
        await viewer.send(b"".join(frame(TEXT, b"%d" % n) for n in range(3000)))
        for n in range(3000):
            assert await viewer.frame() == (TEXT, b"%d" % n)


BAD = {
    "no UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "a reserved bit": (b"\xf2\x80\0\0\0\0", 1002),
    "no mask": (b"\x82\x01x", 1002),
    "a control frame in fragments": (frame(PING, fin=False), 1002),
    "a continuation of nothing": (frame(CONT, b"x"), 1002),
    "a length beyond the bound": (b"\x82\xff" + struct.pack(">Q", 1 << 40) + bytes(4), 1009),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_malformed_frame_is_one_line_of_the_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    bad, code = BAD[name]
    app = Echo()
    with caplog.at_level(logging.WARNING, "uvicorn.error"):
        async with served(app) as port, viewing(port) as viewer:
            await viewer.send(bad)
            assert (await viewer.close())[0] == code
            await asyncio.wait_for(app.ended.wait(), 60)
            assert app.end["code"] == code
            with pytest.raises(OSError):  # as ASGI has it for a client that is gone: no fault of ours
                await app.send({"type": "websocket.send", "text": "too late"})
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("WARNING", None)]
    assert f"closed with {code}" in caplog.text


async def test_a_handshake_that_is_too_large_is_refused_and_not_left_open() -> None:
    async with served(Echo()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX: "
            + b"a" * 9000
            + b"\r\n\r\n"
        )
        async with asyncio.timeout(60):
            assert (await reader.read()).startswith(b"HTTP/1.1 431")
        writer.close()
