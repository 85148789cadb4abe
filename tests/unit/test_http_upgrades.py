"""A client that offers another protocol is served like any other: no body is lost, none becomes a request."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from app.serving.http_bounds import BoundedHttp
from app.serving.ws_bounds import BoundedWebSocket

OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def post(body: bytes, offer: bytes = OFFER) -> bytes:
    return b"POST /first HTTP/1.1\r\nhost: localhost\r\n%scontent-length: %d\r\n\r\n%s" % (offer, len(body), body)


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    names = sorted(name.decode() for name, _ in scope["headers"])
    seen = json.dumps([scope["method"], scope["path"], body.decode(), names]).encode() + b"\n"
    length = str(len(seen)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": seen})


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(echo, http=BoundedHttp, lifespan="off", log_config=None, ws=BoundedWebSocket)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def seen_by_the_application(port: int, *pieces: bytes) -> list[list[Any]]:
    """Each piece comes in a packet of its own; the last one closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.02)  # nothing tells that the server has read a packet
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return [json.loads(line) for line in answer.splitlines() if line.startswith(b"[")]


@pytest.mark.parametrize("cut", [None, -1, -5, 60])
async def test_body_arrives_whatever_the_client_offers(cut: int | None) -> None:
    request = post(b"hello")
    pieces = [request] if cut is None else [request[:cut], request[cut:]]
    async with served() as port:
        first, last = await seen_by_the_application(port, *pieces, LAST)
    assert first == ["POST", "/first", "hello", ["connection", "content-length", "host"]]
    assert last[:3] == ["GET", "/last", ""]


async def test_body_that_looks_like_a_request_is_none() -> None:
    inner = b"DELETE /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"
    head, body = post(inner)[: -len(inner)], inner
    async with served() as port:
        seen = await seen_by_the_application(port, head, body, LAST)
    assert [found[1] for found in seen] == ["/first", "/last"]
    assert seen[0][2] == inner.decode()


async def test_requests_in_one_breath_are_answered_in_turn() -> None:
    async with served() as port:
        seen = await seen_by_the_application(port, post(b"1") + post(b"2") + post(b"3", b"") + post(b"4") + LAST)
    assert [found[2] for found in seen] == ["1", "2", "3", "4", ""]


async def test_chunked_body_arrives() -> None:
    request = b"POST /first HTTP/1.1\r\nhost: localhost\r\n%stransfer-encoding: chunked\r\n\r\n" % OFFER
    async with served() as port:
        first, _ = await seen_by_the_application(port, request, b"5\r\nhello\r\n", b"0\r\n\r\n", LAST)
    assert first[2] == "hello"


async def test_wish_to_close_is_heard() -> None:
    closing = OFFER.replace(b"Upgrade,", b"Upgrade, close,")
    async with served() as port:
        seen = await seen_by_the_application(port, post(b"only", closing))
    assert [found[2] for found in seen] == ["only"]


async def test_connect_is_not_read_twice() -> None:
    request = b"CONNECT host:1 HTTP/1.1\r\nhost: localhost\r\n%s\r\n"
    async with served() as port:
        for offer in (b"connection: close\r\n", OFFER):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request % offer)
            writer.write_eof()
            async with asyncio.timeout(60):
                assert (await reader.read()).startswith(b"HTTP/1.1 ")
            writer.close()


async def test_offer_that_is_contradicted_by_a_second_connection_header_is_none() -> None:
    """The parser takes both headers together, uvicorn the last."""
    inner = b"DELETE /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for offered in (b"h2c", b"websocket"):
        head = (
            b"POST /first HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: %s\r\n"
            b"connection: keep-alive\r\ncontent-length: %d\r\n\r\n" % (offered, len(inner))
        )
        async with served() as port:
            seen = await seen_by_the_application(port, head, inner, LAST)
        assert [found[1] for found in seen] == ["/first", "/last"]
        assert seen[0][2] == inner.decode()


async def test_websocket_that_says_its_body_is_empty_is_one() -> None:
    """As Java's own client does."""
    handshake = (
        b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\ncontent-length: 0\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    async with served() as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(handshake)
        assert not (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\ncontent-length: 5\r\n", b"POST / HTTP/1.1\r\n"])
async def test_websocket_with_a_body_is_refused_at_once(head: bytes) -> None:
    """Its body would be waited for, and it would count as a connection for as long."""
    offer = (
        b"host: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    async with served() as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + offer)
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
