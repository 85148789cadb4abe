"""Connections to the server: which are kept, how an answer is bounded, and what TLS asks of the other side."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.backends.boxlite.attach import Ended, Sockets
from app.backends.boxlite.client import BoxliteClient, Unanswered, Unreachable
from app.backends.boxlite.connection import (
    BODY_PIECES,
    HEAD_BYTES,
    HEAD_LINES,
    ConnectionBroken,
    ResponseTooLarge,
    ServerConnection,
)
from app.backends.boxlite.connection_pool import KEPT, ConnectionPool, NotConnected, ServerAddress
from tests.boxlite.answering import CERTIFICATES, answering, raw_server, response
from tests.boxlite.double.connection import Upgrade
from tests.boxlite.double.http import Request, Response
from tests.boxlite.double.websocket import WebSocket
from tests.boxlite.rig import QUICK, until
from tests.boxlite.wire import Wire

KEY = "secret-key-0123456789"
CHUNKED = b"HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


@asynccontextmanager
async def client(url: str) -> AsyncIterator[BoxliteClient]:
    ours = BoxliteClient(url, KEY, QUICK)
    try:
        yield ours
    finally:
        await ours.aclose()


@asynccontextmanager
async def pool_of(url: str, **options: float) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(ServerAddress.of(url), KEY, 64, **options)
    try:
        yield pool
    finally:
        await pool.aclose()


# --- the next request


async def test_one_connection_serves_one_request_after_another() -> None:
    async with answering(response(200, json={})) as server, client(server.url) as ours:
        for method in ("GET", "POST", "DELETE", "POST"):
            await ours.request(method, "/v1/x", seconds=60)
        assert server.connections == 1 and len(server.requests) == 4


async def test_requests_at_one_time_have_a_connection_each_and_not_too_many_are_kept() -> None:
    go = asyncio.Event()

    async def answer(_: Request) -> Response:
        await go.wait()
        return response(204)

    async with answering(answer) as server, client(server.url) as ours:
        requests = [asyncio.create_task(ours.request("GET", "/v1/x", seconds=60)) for _ in range(KEPT + 8)]
        await until(lambda: len(server.requests) == KEPT + 8)
        assert server.connections == KEPT + 8
        go.set()
        await asyncio.gather(*requests)
        await until(lambda: len(server.writers) == KEPT)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",  # its body ends with the connection
    ],
)
async def test_a_connection_that_the_answer_ends_is_not_used_again(head: bytes) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"{}")
        await writer.drain()

    async with raw_server(talk) as url, client(url) as ours:
        for _ in range(2):
            assert (await ours.request("POST", "/v1/x", seconds=60)).body == {}
    assert connections == 2


async def test_an_idle_connection_that_the_server_ends_is_not_used_again() -> None:
    async with answering(response(204)) as server, client(server.url) as ours:
        await ours.request("POST", "/v1/x", seconds=60)
        await server.drop_all()
        await ours.request("POST", "/v1/x", seconds=60)
        assert server.connections == 2 and len(server.requests) == 2


async def test_an_idle_connection_is_used_no_longer_than_servers_keep_it() -> None:
    async with answering(response(204)) as server, pool_of(server.url, kept_seconds=0) as pool:
        for _ in range(2):
            _, connection = await pool.exchange(pool.request("GET", "/v1/x"), 100, 5, until=soon(), again=False)
            pool.keep(connection)
        assert server.connections == 2
        await until(lambda: len(server.writers) == 1)


@asynccontextmanager
async def closing_what_is_kept(partial: bytes = b"") -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers the first request of each connection, and ends the connection when the second one comes:
    so does one that closes an idle connection at the moment when it is used. With the lines of all requests."""
    lines: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).splitlines()[0])
        writer.write(OK + b"{}")
        lines.append((await reader.readuntil(b"\r\n\r\n")).splitlines()[0])
        writer.write(partial)

    async with raw_server(talk) as url:
        yield url, lines


async def test_what_changes_nothing_is_sent_again_when_a_kept_connection_ends_without_an_answer() -> None:
    async with closing_what_is_kept() as (url, lines), client(url) as ours:
        for _ in range(2):
            assert (await ours.request("GET", "/v1/x", seconds=60)).body == {}
    assert lines == [b"GET /v1/x HTTP/1.1"] * 3


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_what_changes_something_is_not_sent_again(method: str) -> None:
    async with closing_what_is_kept() as (url, lines), client(url) as ours:
        await ours.request(method, "/v1/x", seconds=60)
        with pytest.raises(Unanswered):
            await ours.request(method, "/v1/x", seconds=60)
    assert len(lines) == 2


async def test_nothing_is_sent_again_when_some_of_the_answer_came() -> None:
    async with closing_what_is_kept(b"HTTP/1.1 200") as (url, lines), client(url) as ours:
        await ours.request("GET", "/v1/x", seconds=60)
        with pytest.raises(Unanswered):
            await ours.request("GET", "/v1/x", seconds=60)
    assert len(lines) == 2


async def test_nothing_is_sent_a_third_time() -> None:
    asked = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        if asked == 1:
            writer.write(OK + b"{}")
            await reader.readuntil(b"\r\n\r\n")
            asked += 1

    async with raw_server(talk) as url, client(url) as ours:
        await ours.request("GET", "/v1/x", seconds=60)
        with pytest.raises(Unanswered):
            await ours.request("GET", "/v1/x", seconds=60)
    assert asked == 3


@pytest.mark.parametrize("together", [True, False])
async def test_an_answer_that_nobody_asked_for_answers_nothing(*, together: bool) -> None:
    """Behind the first answer, or later on the idle connection."""
    sent = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        first = not sent.is_set()
        writer.write(OK + (b"11" if first else b"22") + (OK + b"33" if first and together else b""))
        if first and not together:
            await answered.wait()
            writer.write(OK + b"33")
        await writer.drain()
        sent.set()
        await reader.read()

    answered = asyncio.Event()
    async with raw_server(talk) as url, client(url) as ours:
        assert (await ours.request("POST", "/v1/x", seconds=60)).body == 11
        answered.set()
        await sent.wait()
        await until(lambda: not ours.connections._open)
        assert (await ours.request("POST", "/v1/x", seconds=60)).body == 22


async def test_what_an_attach_uses_up_is_replaced_before_the_next_request_comes() -> None:
    async def talk(socket: WebSocket) -> None:
        await socket.send('{"type":"exit","exit_code":0}')

    async def answer(request: Request) -> Response:
        if request.path == "/v1/attach":
            raise Upgrade(talk, [])
        return response(204)

    async with answering(answer) as server, client(server.url) as ours:
        sockets = Sockets(ours.connections, QUICK)
        await ours.request("POST", "/v1/x", seconds=60)
        async with sockets.attached("/v1/attach") as socket:
            assert [frame async for frame in socket.frames()] == [Ended(0)]
        assert server.connections == 1
        await until(lambda: server.connections == 2)
        await ours.request("POST", "/v1/x", seconds=60)
        assert server.connections == 2
        await sockets.aclose()


async def test_a_connection_that_cannot_be_opened_beforehand_is_nobodys_error() -> None:
    async with answering(response(204)) as server:
        url = server.url
    async with pool_of(url) as pool:
        pool.warm(5)
        await until(lambda: pool._warming is None)
        with pytest.raises(NotConnected):
            await pool.exchange(pool.request("GET", "/v1/x"), 100, 5, until=soon(), again=True)


async def test_a_pool_that_closes_opens_nothing_and_leaves_nothing_open() -> None:
    async with answering(response(204)) as server:
        async with pool_of(server.url) as pool:
            pool.warm(5)
        pool.warm(5)
        assert pool._warming is None and not pool._open
        await until(lambda: not server.writers)


async def test_a_connection_for_which_nobody_waits_any_more_is_ended() -> None:
    """Its caller was cancelled between the handshake and the moment when it would have been told."""
    ended: list[ServerConnection] = []
    connection = ServerConnection(ended.append)
    connection.close()
    async with answering(response(204)) as server:
        await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", server.port)
        await until(lambda: ended == [connection])


# --- the answer, byte for byte


def soon() -> float:
    """The end of an exchange that has all the time it needs."""
    return asyncio.get_running_loop().time() + 60


class Exchange:
    """One request on a connection without a network."""

    def __init__(self, body_limit: int = 1000) -> None:
        self.connection = ServerConnection(lambda _: None)
        self.wire = Wire(self.connection)
        self.asking = asyncio.ensure_future(self.connection.exchange(b"GET", body_limit, soon()))

    async def take(self, *pieces: bytes) -> int:
        """How many of the pieces were taken before the connection was cut."""
        await asyncio.sleep(0)
        for number, piece in enumerate(pieces):
            self.connection.data_received(piece)
            if self.wire.ended:
                return number + 1
        return len(pieces)


@pytest.mark.parametrize(
    ("pieces", "status", "body"),
    [
        ([OK + b"ab"], 200, b"ab"),
        ([bytes([byte]) for byte in OK + b"ab"], 200, b"ab"),
        (
            [b"HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n1;x=y\r\na\r\n2\r\nbc\r\n0\r\nt: u\r\n\r\n"],
            200,
            b"abc",
        ),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nlink: y\r\n\r\n", OK + b"ab"], 200, b"ab"),
        ([b"HTTP/1.1 204 x\r\n\r\n"], 204, b""),
        ([b"HTTP/1.1 304 x\r\ncontent-length: 9\r\n\r\n"], 304, b""),
        ([b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n"], 500, b""),
    ],
)
async def test_an_answer_is_read_to_its_end(pieces: list[bytes], status: int, body: bytes) -> None:
    exchange = Exchange()
    await exchange.take(*pieces)
    found = await exchange.asking
    assert (found.status, found.body) == (status, body) and exchange.connection.reusable
    assert exchange.wire.sent == b"GET"


async def test_nothing_is_read_behind_an_upgrade_until_another_protocol_takes_it() -> None:
    exchange = Exchange()
    await exchange.take(b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nfirst")
    found = await exchange.asking
    assert (found.status, found.rest) == (101, b"first")
    assert exchange.wire.paused and not exchange.connection.reusable


async def test_headers_are_found_by_their_names_in_any_case() -> None:
    exchange = Exchange()
    await exchange.take(b"HTTP/1.1 200 x\r\nX-Request-ID: \xe4\r\nx-request-id: b\r\ncontent-length: 0\r\n\r\n")
    found = await exchange.asking
    assert found.header("x-request-id") == "\xe4" and found.header("link") == ""


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"\x16\x03\x01\x00\x00",
        b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
    ],
)
async def test_what_is_no_http_breaks_the_connection(answer: bytes) -> None:
    exchange = Exchange()
    await exchange.take(answer)
    with pytest.raises(ConnectionBroken, match="no HTTP") as caught:
        await exchange.asking
    assert caught.value.began and exchange.wire.ended and not exchange.connection.reusable


@pytest.mark.parametrize("line", [b"x: " + b"y" * 200 + b"\r\n", b"x" * 60])
async def test_a_head_without_end_is_cut_at_its_bound(line: bytes) -> None:
    """Of headers, or of one header."""
    exchange = Exchange()
    begin = b"HTTP/1.1 200 OK\r\n"
    taken = await exchange.take(begin, *[line] * HEAD_BYTES)
    with pytest.raises(ConnectionBroken, match=str(HEAD_BYTES)):
        await exchange.asking
    assert taken == (HEAD_BYTES - len(begin)) // len(line) + 2


@pytest.mark.parametrize(
    ("head", "piece", "most"),
    [
        (b"content-length: 1001\r\n", b"x" * 100, 11),
        (b"", b"x" * 100, 11),  # until the connection ends
        (b"transfer-encoding: chunked\r\n", b"64\r\n" + b"x" * 100 + b"\r\n", 11),
        (b"transfer-encoding: chunked\r\n", b"1;" + b"x" * 995 + b"\r\na\r\n", HEAD_BYTES // 1001 + 1),
    ],
)
async def test_a_body_without_end_is_cut_at_its_bound(head: bytes, piece: bytes, most: int) -> None:
    """Of a body of at most 1,000 bytes, in pieces of 100; and of what is no body and comes in its place."""
    exchange = Exchange(1000)
    taken = await exchange.take(b"HTTP/1.1 207 x\r\n" + head + b"\r\n", *[piece] * 10_000)
    with pytest.raises(ResponseTooLarge) as caught:
        await exchange.asking
    assert caught.value.status == 207 and exchange.wire.ended
    assert taken - 1 <= most


async def test_trailers_without_end_are_cut_at_the_bound() -> None:
    exchange = Exchange(1000)
    head = b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: "
    taken = await exchange.take(head, *[b"y" * 1000] * 10_000)
    with pytest.raises(ResponseTooLarge):
        await exchange.asking
    assert taken <= HEAD_BYTES // 1000 + 2


LAST = CHUNKED + b"0\r\n"


@pytest.mark.parametrize(
    ("begin", "piece", "most", "error"),
    [
        (b"HTTP/1.1 200 x\r\n", b"x: y\r\n", HEAD_LINES, ConnectionBroken),
        (b"", b"HTTP/1.1 100 x\r\n\r\n", HEAD_LINES, ConnectionBroken),
        (LAST, b"x: y\r\n", HEAD_LINES, ResponseTooLarge),
        (CHUNKED, b"1\r\na\r\n", BODY_PIECES, ResponseTooLarge),
    ],
)
async def test_a_read_of_many_pieces_is_parsed_to_the_bound_only(
    begin: bytes, piece: bytes, most: int, error: type[Exception]
) -> None:
    """What follows would be an error of its own kind. The parser finds it when one piece fewer is allowed for."""
    for count, found in ((most + 1, error), (most - 10, ConnectionBroken)):
        exchange = Exchange(4 * 1024 * 1024)
        await exchange.take(begin + piece * count + b"\0")
        with pytest.raises(found) as caught:
            await exchange.asking
        assert ("no HTTP" in str(caught.value)) is (count < most) and exchange.wire.ended


async def test_a_value_behind_the_body_does_not_grow_with_the_body() -> None:
    """The parser copies it with every read: 8 MiB of it took 11 s."""
    exchange = Exchange(4 * 1024 * 1024)
    taken = await exchange.take(LAST + b"x: ", *[b"y" * 1000] * 10_000)
    with pytest.raises(ResponseTooLarge):
        await exchange.asking
    assert taken <= HEAD_BYTES // 1000 + 2


async def test_a_body_in_small_reads_is_read_to_its_end() -> None:
    exchange = Exchange(4 * 1024 * 1024)
    body = b"x" * 4 * 1024 * 1024
    await exchange.take(b"HTTP/1.1 200 x\r\ncontent-length: %d\r\n\r\n" % len(body))
    await exchange.take(*(body[at : at + 300] for at in range(0, len(body), 300)))
    assert (await exchange.asking).body == body


async def test_what_comes_behind_an_upgrade_may_be_long() -> None:
    exchange = Exchange(1000)
    rest = bytes(256 * 1024)
    await exchange.take(b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n" + rest)
    assert (await exchange.asking).rest == rest


async def test_answers_that_nobody_asked_for_are_not_parsed() -> None:
    """An error in one of them is not found."""
    exchange = Exchange()
    await exchange.take(OK + b"ab" + OK + b"cd" * 1000)
    assert (await exchange.asking).body == b"ab" and not exchange.connection.reusable


@pytest.mark.parametrize(
    ("answer", "error", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nab", None, True),
        (b"HTTP/1.1 200 OK\r\n\r\nab", ConnectionResetError("reset"), False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", None, False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", None, False),
        (b"HTTP/1.1 200 OK\r\nx: y\r\n", None, False),
        (b"", None, False),
    ],
)
async def test_the_end_of_the_connection_ends_only_a_body_without_a_length(
    answer: bytes, error: Exception | None, *, whole: bool
) -> None:
    exchange = Exchange()
    await exchange.take(answer)
    exchange.connection.connection_lost(error)
    if whole:
        assert (await exchange.asking).body == b"ab"
    else:
        with pytest.raises(ConnectionBroken) as caught:
            await exchange.asking
        assert caught.value.began is bool(answer)
    assert not exchange.connection.reusable


async def test_an_exchange_whose_time_is_over_ends_the_connection() -> None:
    connection = ServerConnection(lambda _: None)
    wire = Wire(connection)
    with pytest.raises(TimeoutError):
        await connection.exchange(b"GET", 100, asyncio.get_running_loop().time())
    assert wire.sent.startswith(b"GET") and wire.ended and not connection.reusable


async def test_an_exchange_that_is_given_up_ends_the_connection() -> None:
    exchange = Exchange()
    await exchange.take(OK)
    exchange.asking.cancel()
    await asyncio.wait([exchange.asking])
    assert exchange.wire.ended and not exchange.connection.reusable
    with pytest.raises(ConnectionBroken):
        await exchange.connection.exchange(b"GET", 100, soon())
    assert exchange.wire.sent == b"GET"


async def test_an_answer_leaves_nothing_for_the_collector() -> None:
    """A cycle for each request would be work in the middle of another one."""
    exchange = Exchange()
    await exchange.take(OK + b"ab")
    await exchange.asking
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            asking = asyncio.ensure_future(exchange.connection.exchange(b"GET", 1000, soon()))
            await exchange.take(OK + b"ab")
            await asking
        assert gc.collect() < 50
    finally:
        gc.enable()


# --- TLS


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's own CA, in the way of OpenSSL."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "ca.pem"))


@pytest.mark.usefixtures("trusted")
async def test_over_tls_requests_and_sockets_carry_the_key_to_a_server_that_the_operator_trusts() -> None:
    async def talk(socket: WebSocket) -> None:
        await socket.send('{"type":"exit","exit_code":3}')

    async def answer(request: Request) -> Response:
        if request.path == "/v1/attach":
            raise Upgrade(talk, [])
        return response(200, json={"a": 1})

    async with answering(answer, tls=True) as server, client(server.url) as ours:
        sockets = Sockets(ours.connections, QUICK)
        for _ in range(2):
            assert (await ours.request("POST", "/v1/x", seconds=60, body={})).body == {"a": 1}
        async with sockets.attached("/v1/attach") as socket:
            assert [frame async for frame in socket.frames()] == [Ended(3)]
        await sockets.aclose()
    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {KEY}"] * 3
    assert server.connections <= 2


async def test_a_server_that_nobody_trusts_gets_no_request() -> None:
    async with answering(response(204), tls=True) as server, client(server.url) as ours:
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await ours.request("POST", "/v1/x", seconds=60)
        assert not server.requests


@pytest.mark.usefixtures("trusted")
async def test_a_server_with_the_certificate_of_another_host_gets_no_request() -> None:
    async with answering(response(204), tls=True) as server, client(f"https://127.0.0.1:{server.port}") as ours:
        with pytest.raises(Unreachable, match="certificate is not valid for"):
            await ours.request("POST", "/v1/x", seconds=60)
        assert not server.requests


async def test_a_server_that_does_not_speak_tls_is_not_spoken_to() -> None:
    async with answering(response(204)) as server, client(f"https://localhost:{server.port}") as ours:
        with pytest.raises(Unreachable):
            await ours.request("POST", "/v1/x", seconds=60)
        assert not server.requests
