"""The client's end of a WebSocket, frame by frame."""

from __future__ import annotations

import asyncio
import time

import pytest
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import SERVER, Protocol, State
from websockets.uri import WebSocketURI

from app.backends.boxlite.attach import EXIT_LETTERS, Chunk, Ended, Socket, Sockets
from app.backends.boxlite.connection import ConnectionBroken, ServerConnection
from app.backends.boxlite.connection_pool import ConnectionPool, ServerAddress
from app.backends.boxlite.websocket import (
    BYTES_QUEUED,
    FRAGMENTS,
    FRAMES_AT_ONCE,
    FRAMES_QUEUED,
    IncrementalProtocol,
    WebSocket,
    WebSocketClosed,
)
from app.core import timeslices
from app.core.models import Channel
from tests.boxlite.answering import raw_server
from tests.boxlite.double.websocket import accept_key
from tests.boxlite.rig import quick, until
from tests.boxlite.wire import Wire


class Line:
    """A WebSocket without a network, and the server's side of it."""

    def __init__(self, **timeouts: float) -> None:
        uri = WebSocketURI(False, "", 80, "/", "", None, None)
        self.protocol = IncrementalProtocol(uri, state=State.OPEN)
        self.socket = WebSocket(self.protocol, quick(**timeouts))
        self.wire = Wire(self.socket)
        self.server = Protocol(SERVER)

    def say(self, opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> None:
        self.socket.data_received(Frame(opcode, data, fin=fin).serialize(mask=False))

    def heard(self) -> list[Frame]:
        self.server.receive_data(self.wire.sent.removesuffix(b"EOF"))
        self.wire.sent = b""
        return [event for event in self.server.events_received() if isinstance(event, Frame)]

    async def end(self) -> None:
        self.wire.abort()
        await self.socket.close()


async def test_messages_come_whole_and_in_order_and_their_reader_may_be_there_before_them() -> None:
    line = Line()
    reading = asyncio.create_task(line.socket.receive())
    await asyncio.sleep(0)
    line.say(Opcode.TEXT, "ü".encode())
    line.say(Opcode.BINARY, b"a", fin=False)
    line.say(Opcode.PING, b"p")
    line.say(Opcode.CONT, b"b", fin=False)
    line.say(Opcode.CONT, b"c")
    assert await reading == "ü" and await line.socket.receive() == b"abc"
    assert [(frame.opcode, frame.data) for frame in line.heard()] == [(Opcode.PONG, b"p")]
    await line.end()


async def test_a_reader_that_is_behind_holds_the_server_up_and_loses_nothing() -> None:
    line = Line()
    for number in range(FRAMES_QUEUED):
        line.say(Opcode.BINARY, b"%d" % number)
    assert not line.wire.paused
    line.say(Opcode.BINARY, b"last")
    assert line.wire.paused
    found = [await line.socket.receive() for _ in range(FRAMES_QUEUED * 3 // 4)]
    assert line.wire.paused
    found.append(await line.socket.receive())
    assert not line.wire.paused
    found += [await line.socket.receive() for _ in range(FRAMES_QUEUED // 4)]
    assert found == [b"%d" % number for number in range(FRAMES_QUEUED)] + [b"last"]
    await line.end()


async def test_a_reader_that_is_behind_at_the_end_reads_all_that_came() -> None:
    line = Line()
    for _ in range(FRAMES_QUEUED + 1):
        line.say(Opcode.BINARY, b"x")
    line.wire.abort()
    line.say(Opcode.BINARY, b"x")
    for _ in range(FRAMES_QUEUED + 2):
        assert await line.socket.receive() == b"x"
    with pytest.raises(WebSocketClosed):
        await line.socket.receive()
    await line.end()


@pytest.mark.parametrize(("message", "size"), [(b"x" * 64 * 1024, 1), ("x" * 64 * 1024, 4)])
async def test_messages_of_many_bytes_hold_the_server_up_too(message: str | bytes, size: int) -> None:
    """Else 256 frames of 256 KiB would take 64 MiB. Each letter of a text counts four bytes, as one letter that is wide
    makes all of them wide."""
    line = Line()
    for _ in range(FRAMES_QUEUED):
        if isinstance(message, str):
            line.say(Opcode.TEXT, message.encode())
        else:
            line.say(Opcode.BINARY, message)
    assert line.wire.paused
    assert len(line.socket._messages) == BYTES_QUEUED // (size * len(message)) + 1
    for _ in range(FRAMES_QUEUED):
        assert await line.socket.receive() == message
    await asyncio.sleep(0)
    assert not line.wire.paused
    await line.end()


async def test_as_many_of_the_servers_longest_frames_fit_as_of_its_short_ones() -> None:
    """Each of 1,024 bytes was replaced by three, behind the number of its channel."""
    line = Line()
    for _ in range(FRAMES_QUEUED):
        line.say(Opcode.BINARY, b"x" * 3073)
    assert not line.wire.paused
    await line.end()


# --- what comes is parsed in slices


EMPTY = {opcode: Frame(opcode, b"").serialize(mask=False) for opcode in Opcode}


async def test_a_read_of_many_frames_is_parsed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is read meanwhile."""
    monkeypatch.setattr(timeslices, "SECONDS", 0.0)  # each look at the time uses up a slice
    line = Line()
    line.socket.data_received(EMPTY[Opcode.PING] * FRAMES_AT_ONCE * 3)
    for _ in range(2):
        assert len(line.heard()) == FRAMES_AT_ONCE and line.wire.paused
        await asyncio.sleep(0)
    assert len(line.heard()) == FRAMES_AT_ONCE and not line.wire.paused
    await line.end()


async def test_connections_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slice in each run through the loop, however many connections have something unread."""
    monkeypatch.setattr(timeslices, "SECONDS", 0.0)
    lines = [Line() for _ in range(10)]
    for line in lines:
        line.socket.data_received(EMPTY[Opcode.PING] * FRAMES_AT_ONCE * 3)
        line.heard()
    for _ in range(2 * len(lines)):
        await asyncio.sleep(0)
        assert sorted(len(line.heard()) for line in lines) == [0] * 9 + [FRAMES_AT_ONCE]
    for line in lines:
        assert not line.wire.paused
        await line.end()


@pytest.mark.parametrize("opcode", [Opcode.BINARY, Opcode.PING, Opcode.PONG])
async def test_a_read_of_empty_frames_holds_nobody_up(opcode: Opcode) -> None:
    """Processor time of one run through the loop. Without slices it is 0.3 to 5 s."""
    line = Line()

    async def read() -> None:
        while True:
            await line.socket.receive()

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    longest, since = 0.0, time.thread_time()
    line.socket.data_received(EMPTY[opcode] * (256 * 1024 // 2))
    while line.wire.paused or not longest:
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, since, line.wire.sent = max(longest, now - since), now, b""
    assert longest < 0.05
    reading.cancel()
    await line.end()


async def test_what_is_unread_at_the_end_is_read_before_it() -> None:
    line = Line()
    line.socket.data_received(Frame(Opcode.BINARY, b"x").serialize(mask=False) * FRAMES_AT_ONCE * 3)
    line.wire.abort()
    line.say(Opcode.BINARY, b"y")
    found = [await line.socket.receive() for _ in range(FRAMES_AT_ONCE * 3 + 1)]
    assert line.socket._lost.done() and found == [b"x"] * FRAMES_AT_ONCE * 3 + [b"y"]
    with pytest.raises(WebSocketClosed):
        await line.socket.receive()
    await line.end()


@pytest.mark.parametrize("last", [b"\x83\x00", b"\x81\x02\xff\xfe", EMPTY[Opcode.CLOSE]])
@pytest.mark.parametrize("before", [0, FRAMES_AT_ONCE - 1, FRAMES_AT_ONCE])
async def test_nothing_behind_the_last_frame_counts(last: bytes, before: int) -> None:
    """An unknown kind, broken UTF-8, and a Close, wherever in a slice it stands."""
    line = Line()
    frame = Frame(Opcode.BINARY, b"x").serialize(mask=False)
    line.socket.data_received(frame * before + last + frame * FRAMES_AT_ONCE * 2)
    line.say(Opcode.BINARY, b"y")
    assert [await line.socket.receive() for _ in range(before)] == [b"x"] * before
    with pytest.raises(WebSocketClosed):
        await line.socket.receive()
    await line.end()
    assert not line.socket._messages and not line.protocol.unread


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 64 * 1024, 1024 * 1024])
async def test_frames_in_pieces_come_whole(size: int) -> None:
    """Wherever a read or a slice ends."""
    line = Line()
    lengths = [*range(140), 65_535, 65_536, *range(FRAMES_AT_ONCE)]
    stream = b"".join(Frame(Opcode.BINARY, bytes(length)).serialize(mask=False) for length in lengths)
    for at in range(0, len(stream), size):
        line.socket.data_received(stream[at : at + size])
    assert [len(await line.socket.receive()) for _ in lengths] == lengths
    await line.end()


async def test_a_pong_that_was_not_asked_for_sets_no_timer() -> None:
    line = Line()
    timer = line.socket._timer
    line.say(Opcode.PONG)
    assert line.socket._timer is timer and not timer.cancelled()
    await line.end()


async def test_a_frame_that_is_none_waits_behind_everybody_else() -> None:
    """What is queued is read without a wait, and to parse a frame takes 0.2 ms at worst."""
    line = Line()
    for _ in range(50):
        line.say(Opcode.TEXT, b"[]")
    line.say(Opcode.TEXT, b'{"type":"exit","exit_code":5}')

    async def read() -> Chunk | Ended:
        return await anext(Socket(line.socket).frames())

    reading = asyncio.create_task(read())
    runs = 0
    while not reading.done():
        await asyncio.sleep(0)
        runs += 1
    assert await reading == Ended(5) and runs > 50
    await line.end()


async def test_a_long_text_is_no_exit_frame() -> None:
    line = Line()
    line.say(Opcode.TEXT, b'{"type":"exit","exit_code":3,"x":"' + b"x" * EXIT_LETTERS + b'"}')
    line.say(Opcode.TEXT, b'{"type":"exit","exit_code":5}')
    assert await anext(Socket(line.socket).frames()) == Ended(5)
    await line.end()


async def test_what_comes_with_the_handshake_may_hold_the_server_up_at_once() -> None:
    line, taken = Line(), ServerConnection(lambda _: None)
    wire = Wire(taken)
    wire.pause_reading()  # as behind the answer 101
    taken.hand_over(line.socket, Frame(Opcode.BINARY, b"x").serialize(mask=False) * (FRAMES_QUEUED + 1))
    assert wire.paused
    await line.end()
    with pytest.raises(ConnectionBroken):
        taken.hand_over(line.socket, b"")


async def test_what_came_before_the_end_is_read_before_it() -> None:
    line = Line()
    line.say(Opcode.BINARY, b"a")
    line.say(Opcode.CLOSE, Close(1000, "").serialize())
    assert await line.socket.receive() == b"a"
    with pytest.raises(WebSocketClosed):
        await line.socket.receive()
    with pytest.raises(WebSocketClosed):
        await line.socket.send(b"x")
    assert [frame.opcode for frame in line.heard()] == [Opcode.CLOSE]
    await line.end()


@pytest.mark.parametrize("polite", [True, False])
async def test_a_reader_is_let_go_at_the_end(*, polite: bool) -> None:
    line = Line()
    reading = asyncio.create_task(line.socket.receive())
    await asyncio.sleep(0)
    if polite:
        line.say(Opcode.CLOSE)
    else:
        line.wire.abort()
    with pytest.raises(WebSocketClosed):
        await reading
    await line.end()


async def test_a_message_of_too_many_fragments_cuts_the_connection() -> None:
    line = Line()
    line.say(Opcode.BINARY, fin=False)
    for _ in range(FRAGMENTS - 1):
        line.say(Opcode.CONT, fin=False)
    assert not line.wire.ended
    line.say(Opcode.CONT, fin=False)
    assert line.wire.ended
    with pytest.raises(WebSocketClosed):
        await line.socket.receive()
    await line.end()


async def test_a_sender_waits_while_the_server_takes_nothing() -> None:
    line = Line()
    line.socket.pause_writing()
    sending = asyncio.create_task(line.socket.send(b"a"))
    await asyncio.sleep(0)
    assert not sending.done()
    line.socket.resume_writing()
    await sending
    assert [frame.data for frame in line.heard()] == [b"a"]
    await line.end()


async def test_a_server_that_asks_and_takes_nothing_gets_one_answer() -> None:
    line = Line()
    line.socket.pause_writing()
    for number in range(1000):
        line.say(Opcode.PING, b"%d" % number)
    assert line.heard() == []
    line.say(Opcode.TEXT, b"x")
    line.socket.resume_writing()
    assert [(frame.opcode, frame.data) for frame in line.heard()] == [(Opcode.PONG, b"999")]
    await line.end()


async def test_a_sender_that_waits_is_told_of_the_end() -> None:
    line = Line()
    line.socket.pause_writing()
    sending = asyncio.create_task(line.socket.send("a"))
    await asyncio.sleep(0)
    line.wire.abort()
    with pytest.raises(WebSocketClosed):
        await sending
    await line.end()


async def test_a_connection_whose_other_end_answers_no_ping_is_cut() -> None:
    line = Line(ping=0.01, pong=0.05)
    with pytest.raises(WebSocketClosed):
        await line.socket.receive()
    assert [frame.opcode for frame in line.heard()] == [Opcode.PING] and line.wire.ended
    await line.end()


async def test_a_connection_whose_other_end_answers_pings_is_kept_and_asked_again() -> None:
    line = Line(ping=0.01, pong=30)
    for _ in range(3):
        await until(lambda: line.wire.sent)
        assert [frame.opcode for frame in line.heard()] == [Opcode.PING]
        line.say(Opcode.PONG)
    assert not line.wire.ended
    await line.end()


async def test_a_close_waits_for_the_servers_part_and_not_for_ever() -> None:
    line = Line(closing=0.05)
    await line.socket.close()
    assert line.wire.ended and [frame.opcode for frame in line.heard()] == [Opcode.CLOSE]
    line = Line(closing=30)
    closing = line.socket.close()
    await asyncio.sleep(0)
    assert not closing.done() and not line.wire.ended
    line.say(Opcode.CLOSE)
    line.socket.eof_received()
    line.wire.abort()  # the transport ends itself at the end of what it reads
    await closing


async def test_nothing_is_written_to_a_connection_that_has_ended() -> None:
    """The transport of a test refuses it."""
    line = Line()
    line.wire.abort()
    line.say(Opcode.PING)
    with pytest.raises(WebSocketClosed):
        await line.socket.send(b"a")
    await line.socket.close()


async def test_frames_that_come_with_the_handshake_are_not_lost() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
        upgrade = "HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        frames = [Frame(Opcode.BINARY, b"\x01out"), Frame(Opcode.TEXT, b'{"type":"exit","exit_code":5}')]
        first, second = [frame.serialize(mask=False) for frame in frames]
        writer.write(f"{upgrade}sec-websocket-accept: {accept_key(key)}\r\n\r\n".encode() + first + second[:9])
        await writer.drain()
        writer.write(second[9:])
        await reader.read()

    async with raw_server(talk) as url:
        pool = ConnectionPool(ServerAddress.of(url), None, 1)
        sockets = Sockets(pool, quick(closing=0.2))
        async with sockets.attached("/v1/x") as socket:
            assert [frame async for frame in socket.frames()] == [Chunk(Channel.STDOUT, b"out"), Ended(5)]
        await sockets.aclose()
        await pool.aclose()


async def test_whoever_attaches_does_not_wait_for_the_close_of_the_server_unless_many_do() -> None:
    """A server that answers no Close, as one that hangs."""
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
        upgrade = "HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        writer.write(f"{upgrade}sec-websocket-accept: {accept_key(key)}\r\n\r\n".encode())
        await ended.wait()

    async with raw_server(talk) as url:
        pool = ConnectionPool(ServerAddress.of(url), None, 1)
        sockets = Sockets(pool, quick(closing=0.3), most_closing=2)

        async def attach() -> None:
            async with sockets.attached("/v1/x"):
                return

        for _ in range(2):
            await attach()
        assert len(sockets._closing) == 2
        third = asyncio.create_task(attach())
        await until(lambda: len(sockets._closing) == 3)
        assert not third.done()
        await third
        assert len(sockets._closing) < 3
        ended.set()
        await sockets.aclose()
        await pool.aclose()
