"""What somebody without a key can do with a connection: not much, and not for long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from app.serving import http_bounds, http_slices
from app.serving.http_bounds import BoundedHttp


async def application(scope: object, receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})  # type: ignore[operator]  # ASGI
    await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[operator]  # ASGI


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """The lengths of the pieces that the body comes in, and the body. The first is taken late."""
    await asyncio.sleep(0.05)
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message["body"])
        more = message["more_body"]
    answer = b"".join([*pieces, *(b" %d" % len(piece) for piece in pieces if piece)])
    headers = [(b"content-length", b"%d" % len(answer)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def served(application: Any = application) -> AsyncIterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(application, http=BoundedHttp, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    ready, startup = asyncio.Event(), server.startup

    async def announced(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = announced  # type: ignore[method-assign]  # uvicorn tells nobody
    serving = asyncio.create_task(server._serve([listener]))
    await ready.wait()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def answer_to(port: int, *pieces: bytes) -> bytes:
    """Everything that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n"
PIECE = 1_000_000  # of a large answer


async def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "HEAD_SECONDS", 0.05)
    async with served() as port:
        assert await answer_to(port) == b""
        monkeypatch.setattr(http_bounds, "HEAD_SECONDS", 1)  # enough to see that a head has begun
        assert (await answer_to(port, GET)).startswith(b"HTTP/1.1 408")


async def test_a_request_in_time_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "HEAD_SECONDS", 60)
    async with served() as port:
        assert (await answer_to(port, GET + b"connection: close\r\n\r\n")).endswith(b"ok")


async def test_a_head_without_end_is_refused() -> None:
    async with served() as port:
        answer = await answer_to(port, GET, *[b"a" * 65536] * 64)
        assert answer.startswith(b"HTTP/1.1 431") or answer == b"reset"
        answer = await answer_to(port, *[b"GET /" + b"a" * 65536] * 64)
        assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")) or answer == b"reset"


@pytest.mark.parametrize("pieces", [1, 16])
async def test_a_target_above_its_bound_is_refused_before_anything_reads_it(pieces: int) -> None:
    seen: list[str] = []

    async def counted(scope: Any, receive: object, send: object) -> None:
        seen.append(scope["path"])
        await application(scope, receive, send)

    rest = b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    longest = b"/?" + b"a&" * (http_bounds.TARGET_BYTES // 2 - 1)
    assert len(longest) == http_bounds.TARGET_BYTES
    async with served(counted) as port:
        assert (await answer_to(port, b"GET " + longest + rest)).endswith(b"ok")
        request = b"GET " + longest + b"a" + rest
        size = len(request) // pieces + 1
        answer = await answer_to(port, *(request[at : at + size] for at in range(0, len(request), size)))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 414 URI Too Long\r\n")
    assert b"16384 bytes" in body
    assert seen == ["/"], "the longest that is taken"


async def test_too_many_headers_are_refused() -> None:
    async with served() as port:
        answer = await answer_to(port, GET + b"x: y\r\n" * 200 + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 400")


async def test_a_thousand_requests_in_one_breath_end_the_connection_and_nothing_else() -> None:
    async with served() as port:
        answer = await answer_to(port, (GET + b"\r\n") * 1000)
        assert answer.count(b"HTTP/1.1 200") < 1000
        assert (await answer_to(port, GET + b"connection: close\r\n\r\n")).endswith(b"ok")


@pytest.mark.parametrize("waiting", [0, 1, 5])
async def test_who_is_being_answered_learns_of_a_disconnect_whatever_waits_behind(waiting: int) -> None:
    began, left = asyncio.Event(), asyncio.Event()

    async def patient(_: object, receive: Any, __: object) -> None:
        began.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with served(patient) as port, asyncio.timeout(60):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + b"\r\n")
        await began.wait()
        writer.write((GET + b"\r\n") * waiting)
        assert not left.is_set()
        writer.close()
        await left.wait()


async def test_a_body_that_waits_behind_another_request_is_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read, and waits only so long; who is being answered learns of the end."""
    monkeypatch.setattr(http_bounds, "WAITING_SECONDS", 0.3)
    left = asyncio.Event()

    async def patient(_: object, receive: Any, __: object) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with served(patient) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + b"\r\n" + b"PUT / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                writer.write(bytes(1_000_000))
                await writer.drain()
                sent += 1
        assert sent < 50  # what the sockets' buffers take
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await left.wait()
        writer.close()


async def test_a_large_body_right_behind_a_complete_answer_is_read() -> None:
    """The client has all of the answer; the service is still putting its request away."""

    async def tidy(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "PUT":
            await echo(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b""})

    async with served(tidy) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        body = bytes(range(256)) * 20_000
        writer.write(b"PUT / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert body in await reader.read()
        writer.close()


async def test_a_full_house_closes_whoever_has_been_idle_for_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_slices, "NEWCOMERS", 3)
    async with served() as port:
        first = await asyncio.open_connection("127.0.0.1", port)
        others = []
        for _ in range(2):
            others.append(await asyncio.open_connection("127.0.0.1", port))
            others[-1][1].write(GET + b"\r\n")
            assert (await others[-1][0].readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        assert (await answer_to(port, GET + b"connection: close\r\n\r\n")).endswith(b"ok")
        async with asyncio.timeout(60):
            assert await first[0].read() == b""
        for _, writer in (first, *others):
            writer.close()


async def test_silent_connections_of_one_address_cost_another_none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_slices, "NEWCOMERS", 3)
    async with served() as port:
        quiet = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        many = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        async with asyncio.timeout(60):
            for reader, _ in many[:-2]:
                assert await reader.read() == b""
            quiet[1].write(GET + b"connection: close\r\n\r\n")
            assert (await quiet[0].read()).endswith(b"ok")
        for _, writer in (quiet, *many):
            writer.close()


async def test_a_body_comes_as_it_was_sent_in_one_piece_and_in_many() -> None:
    post = b"POST / HTTP/1.1\r\nhost: localhost\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % (97 + n % 26) for n in range(1000)) + b"0\r\n\r\n"
    letters = bytes(97 + n % 26 for n in range(1000))
    async with served(echo) as port:
        assert (await answer_to(port, post + b"content-length: 5\r\n\r\nhello")).endswith(b"hello 5")
        assert (await answer_to(port, post + b"transfer-encoding: chunked\r\n\r\n" + chunks)).endswith(
            letters + b" 1000"
        )
        assert (await answer_to(port, post + b"content-length: 0\r\n\r\n")).endswith(b"\r\n\r\n")


async def test_a_body_that_was_answered_before_it_was_read_is_thrown_away_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_slices, "DISCARDED", 1_000_000)
    post = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n"
    async with served() as port:
        close = GET + b"connection: close\r\n\r\n"
        answers = await answer_to(port, post % 900_000 + b"\r\n", bytes(900_000), close)
        assert answers.count(b"HTTP/1.1 200 OK") == 2
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post % 100_000_000 + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 OK")
        with pytest.raises(ConnectionError):
            for _ in range(100):
                writer.write(bytes(1_000_000))
                await writer.drain()
        writer.close()


async def test_a_client_that_takes_little_at_a_time_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than the bound it only empties the kernel's buffer: the server's own does not get less meanwhile."""
    monkeypatch.setattr(BoundedHttp, "stall_seconds", 1)
    size = 30_000_000

    async def large(_: object, __: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        for sent in range(0, size, PIECE):
            await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": sent + PIECE < size})

    async with served(large) as port, asyncio.timeout(60):
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, GET + b"connection: close\r\n\r\n")
            total, slowly_until = 0, loop.time() + 2.5
            while piece := await loop.sock_recv(client, 65_536):
                total += len(piece)
                if loop.time() < slowly_until:
                    await asyncio.sleep(0.05)
        assert total > size  # with its head


@pytest.mark.parametrize(
    "head",
    ["FOO / HTTP/1.1\r\n\r\n", "GET /\u00e9 HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\ntransfer-encoding: foo\r\n\r\n"],
    ids=["method", "target", "encoding"],
)
async def test_what_is_no_request_is_told_so_as_a_problem(head: str) -> None:
    async with served() as port:
        answer = await answer_to(port, head.encode())
    lines, _, body = answer.partition(b"\r\n\r\n")
    assert lines.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"content-type: application/problem+json" in lines
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == ("about:blank", 400)
    assert "percent-encoded" in problem["detail"]


async def test_trailers_have_no_end_only_up_to_a_bound_and_are_no_headers() -> None:
    begin = b"PUT / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"

    async def names(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        answer = b",".join(sorted(name for name, _ in scope["headers"]))
        headers = [(b"content-length", b"%d" % len(answer)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async with served(names) as port:
        for pieces in ([begin + b"0\r\nauthorization: x\r\n\r\n"], [begin, b"0\r\nauthorization: x\r\n\r\n"]):
            assert (await answer_to(port, *pieces)).endswith(b"host,transfer-encoding")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = bytes(1_000_000)
        writer.write(begin + (b"%x\r\n%b\r\n" % (len(body), body)) * 5 + b"0\r\nx: ")  # however large what it follows
        sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                writer.write(bytes(b"a" * 100_000))
                await writer.drain()
                sent += 1
        assert sent < 100
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_body_in_chunks_of_one_byte_is_taken() -> None:
    async with served(echo) as port:
        chunks = b"1\r\nx\r\n" * 100_000
        head = b"PUT / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        answer = await answer_to(
            port, head, *(chunks[at : at + 30_000] for at in range(0, len(chunks), 30_000)), b"0\r\n\r\n"
        )
        assert b"x" * 100_000 in answer


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    over = asyncio.Event()

    async def large(_: object, __: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"50000000")]})
        for _ in range(50):
            await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": True})
        await send({"type": "http.response.body"})  # waits until all is taken, or the client cut off
        over.set()

    async with served(large) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + b"connection: close\r\n\r\n")
        assert len(await reader.read()) > 50_000_000  # who reads gets all
        writer.close()
        over.clear()
        monkeypatch.setattr(BoundedHttp, "stall_seconds", 0.2)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(GET + b"\r\n")
        await over.wait()  # meanwhile the client takes nothing
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(50_000_000)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
