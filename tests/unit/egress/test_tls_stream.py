"""TLS records that carry no data: each costs the receiver, and nothing shows it outside of TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest

from app.egress import turns
from app.egress.client_hello import MOST
from app.egress.tls_stream import ANSWERS, PIECE, RECORD, RECORD_SENT, TlsStream, strictly
from app.egress.turns import SandboxTurns
from tests.unit.egress.key_updates import OpenSslClient
from tests.unit.egress.support import NAME, host_tls, trusted_hosts

FLOOD = 60_000  # bytes: fewer than MOST. About 2,200 key updates


class Peers:
    """A `TlsStream` and the client that it serves, after their handshake."""

    def __init__(self, its_turns: SandboxTurns, side: socket.socket, client: socket.socket) -> None:
        context = host_tls()
        strictly(context)
        context.num_tickets = 0
        self.client, self.tls = client, OpenSslClient()
        self.counted = 0
        self.stream = TlsStream(its_turns, side, context, self.count, ragged=True)

    def count(self, size: int) -> None:
        self.counted += size

    async def shake_hands(self) -> None:
        loop = asyncio.get_running_loop()
        shaking = asyncio.create_task(self.stream.shake_hands())
        said, done = self.tls.shake_hands()
        await self.send(said)
        while not done:
            said, done = self.tls.shake_hands(await loop.sock_recv(self.client, 65536))
            await self.send(said)
        await shaking

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.client, data)

    async def read_on(self) -> None:
        while await asyncio.get_running_loop().sock_recv(self.client, 1 << 20):
            pass


@asynccontextmanager
async def peers(*, shaken: bool = True) -> AsyncIterator[Peers]:
    side, client = socket.socketpair()
    with side, client, closing(SandboxTurns()) as its_turns:
        side.setblocking(False)
        client.setblocking(False)
        made = Peers(its_turns, side, client)
        if shaken:
            await made.shake_hands()
        yield made
        its_turns.forget(side.fileno())


async def test_host_gets_the_end_of_the_handshake_and_the_first_data_at_once() -> None:
    loop = asyncio.get_running_loop()
    side, host = socket.socketpair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = host_tls().wrap_bio(incoming, outgoing, server_side=True)
    with side, host, closing(SandboxTurns()) as its_turns:
        side.setblocking(False)
        host.setblocking(False)
        stream = TlsStream(its_turns, side, trusted_hosts(), lambda size: None, server_name=NAME)
        shaking = asyncio.create_task(stream.shake_hands())
        incoming.write(await loop.sock_recv(host, 65536))
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        await loop.sock_sendall(host, outgoing.read())
        await asyncio.wait_for(shaking, 60)
        with pytest.raises(BlockingIOError):
            host.recv(1)
        await stream.send(b"x")
        incoming.write(host.recv(65536))
        tls.do_handshake()
        assert tls.read() == b"x"
        its_turns.forget(side.fileno())


class Holds:
    """The longest that the loop served nobody else, in processor time, and how often it got to others."""

    def __init__(self) -> None:
        self.longest, self.turns = 0.0, 0
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.thread_time() - before)
            self.turns += 1

    async def stop(self) -> None:
        await asyncio.sleep(0)  # it sees the last one too
        self._task.cancel()


def at_once(flood: bytes, tls: ssl.SSLObject, incoming: ssl.MemoryBIO) -> float:
    """Seconds of processor time that OpenSSL takes for all of it in one call."""
    incoming.write(flood)
    before = time.thread_time()
    with pytest.raises(ssl.SSLWantReadError):
        tls.read(RECORD)
    return time.thread_time() - before


async def test_control_openssl_reads_all_key_updates_in_one_call() -> None:
    async with peers() as at:
        first = at_once(at.tls.key_updates(FLOOD // 8), at.stream.tls, at.stream._incoming)
        assert at_once(at.tls.key_updates(FLOOD), at.stream.tls, at.stream._incoming) > 3 * first > 0


async def test_key_updates_hold_nobody_up_for_long() -> None:
    async with peers() as at:
        whole = at_once(at.tls.key_updates(FLOOD), at.stream.tls, at.stream._incoming)
        await at.send(at.tls.key_updates(FLOOD) + at.tls.data(b"data"))
        holds = Holds()
        await asyncio.sleep(0)
        assert await at.stream.receive(65536) == b"data"
        await holds.stop()
        assert holds.turns > FLOOD // RECORD
        assert holds.longest < 0.7 * whole, "the first piece may be a whole record's"


async def test_key_updates_after_data_hold_nobody_up_either() -> None:
    async with peers() as at:
        whole = at_once(at.tls.key_updates(FLOOD), at.stream.tls, at.stream._incoming)
        await at.send(b"".join(at.tls.data(b"x") + at.tls.key_updates(FLOOD) for _ in range(3)) + at.tls.data(b"y"))
        holds, got = Holds(), b""
        await asyncio.sleep(0)
        while len(got) < 4:
            got += await at.stream.receive(65536)
        await holds.stop()
        assert got == b"xxxy"
        assert holds.longest < 0.7 * whole


async def test_stream_without_data_is_aborted() -> None:
    async with peers() as at:
        flood = at.tls.key_updates(3 * MOST)
        sending = asyncio.create_task(at.send(flood))
        before = at.counted
        with pytest.raises(ConnectionAbortedError):
            await asyncio.wait_for(at.stream.receive(65536), 60)
        assert at.counted - before <= MOST + 65536
        assert at.stream._fruitless <= MOST + PIECE
        sending.cancel()


async def test_data_between_key_updates_goes_on() -> None:
    """As in a connection that lives for long."""
    async with peers() as at:
        flood = b"".join(at.tls.key_updates(MOST // 4) + at.tls.data(b"x") for _ in range(9))
        sending = asyncio.create_task(at.send(flood))
        got = b""
        while len(got) < 9:
            got += await at.stream.receive(65536)
        await sending
        assert got == b"x" * 9


async def test_answers_that_nobody_takes_stop_the_reading() -> None:
    """Each key update here asks for one, and the client reads nothing. What it sends with them is data, so the bytes
    without data are few."""
    async with peers() as at:
        sends = asyncio.create_task(at.stream.send(bytes(1 << 20)))
        flood = b"".join(at.tls.key_updates(1000, answered=True) + at.tls.data(b"x") for _ in range(200))
        floods = asyncio.create_task(at.send(flood))
        got, most = b"", 0

        async def receive() -> None:
            nonlocal got
            while len(got) < 200:
                got += await at.stream.receive(65536)

        receives = asyncio.create_task(receive())
        async with asyncio.timeout(60):
            while not (at.stream._sending.locked() and most > ANSWERS):
                await asyncio.sleep(0)
                most = max(most, at.stream._outgoing.pending)
        for _ in range(2000):
            await asyncio.sleep(0)
            most = max(most, at.stream._outgoing.pending)
        assert at.stream._sending.locked()
        assert ANSWERS < most <= ANSWERS + RECORD_SENT
        assert not receives.done()
        reads = asyncio.create_task(at.read_on())
        await asyncio.wait_for(receives, 60)
        for task in (floods, sends, reads):
            task.cancel()
        assert got == b"x" * 200


async def test_hello_in_tiny_records_takes_turns_and_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = b"\x01\x01\xff\xff\x03\x03" + bytes(131_065)
    records = b"".join(b"\x16\x03\x01\x00\x01" + bytes((byte,)) for byte in hello)
    monkeypatch.setattr(turns, "SECONDS", 0.0)  # it is always over
    async with peers(shaken=False) as at:
        sending = asyncio.create_task(at.send(records))
        holds = Holds()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionAbortedError):
            await asyncio.wait_for(at.stream.shake_hands(), 60)
        await holds.stop()
        assert holds.turns > (MOST - RECORD) // PIECE
        assert at.counted <= MOST + RECORD
        sending.cancel()


@pytest.mark.parametrize(("size", "quiet"), [(1000, True), (3 * PIECE, False)])
async def test_connection_with_few_records_and_no_data_is_quiet(size: int, quiet: bool) -> None:
    """With many it is not: reading on would hold up others."""
    async with peers() as at:
        await at.send(at.tls.key_updates(size))
        before = at.counted
        assert at.stream.is_quiet() is quiet
        assert at.counted - before <= PIECE


async def test_connection_with_data_is_not_quiet() -> None:
    async with peers() as at:
        assert at.stream.is_quiet()
        await at.send(at.tls.key_updates(1000) + at.tls.data(b"x"))
        assert not at.stream.is_quiet()
