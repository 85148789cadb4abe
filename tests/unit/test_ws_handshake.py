"""The handshake of a WebSocket: what `websockets` refuses is refused, also where it is not asked."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.headers import build_authorization_basic
from websockets.utils import accept_key

from app.serving import ws_handshake
from app.serving.websocket import WebSocketConnection
from app.serving.ws_handshake import acceptance, refusal
from tests.unit.test_ws_bounds import Echo, served, viewing

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ORDINARY = [
    (b"host", b"localhost"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-key", KEY),
    (b"sec-websocket-version", b"13"),
]


def with_header(name: bytes, *values: bytes) -> list[tuple[bytes, bytes]]:
    return [header for header in ORDINARY if header[0] != name] + [(name, value) for value in values]


IN_ORDER = {
    "as most clients send it": ORDINARY,
    "in other letters": with_header(b"upgrade", b"WebSocket"),
    "as Firefox sends it": with_header(b"connection", b"keep-alive, Upgrade"),
    "one header of two tokens": with_header(b"connection", b"Upgrade,keep-alive"),
    "two headers": with_header(b"connection", b"keep-alive", b"upgrade"),
    "a subprotocol that is not spoken": with_header(b"sec-websocket-protocol", b"chat, superchat"),
    "an extension that is not spoken": with_header(b"sec-websocket-extensions", b"permessage-deflate"),
    "with credentials": with_header(b"authorization", build_authorization_basic("a", "b").encode()),
}
REFUSED = {
    "another protocol": (with_header(b"upgrade", b"h2c"), 426),
    "two protocols": (with_header(b"upgrade", b"websocket, h2c"), 426),
    "the protocol twice": (with_header(b"upgrade", b"websocket", b"websocket"), 426),
    "a connection that is not upgraded": (with_header(b"connection", b"keep-alive"), 426),
    "no connection header": (with_header(b"connection"), 426),
    "no key": (with_header(b"sec-websocket-key"), 400),
    "two keys": (with_header(b"sec-websocket-key", KEY, KEY), 400),
    "a key of 15 bytes": (with_header(b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAA"), 400),
    "a key that is no base64": (with_header(b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=!"), 400),
    "no version": (with_header(b"sec-websocket-version"), 400),
    "another version": (with_header(b"sec-websocket-version", b"8"), 400),
    "two versions": (with_header(b"sec-websocket-version", b"13", b"13"), 400),
    "two origins": (with_header(b"origin", b"http://a", b"http://b"), 400),
    "a long line": (with_header(b"x", b"a" * 9000), 431),
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_a_handshake_in_order_is_accepted_and_websockets_agrees(name: str) -> None:
    headers = IN_ORDER[name]
    assert refusal(b"/", headers) is None
    assert ws_handshake._judged(b"/", headers) is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_handshake_that_websockets_refuses_is_refused_as_it_says(name: str) -> None:
    headers, status = REFUSED[name]
    answer = refusal(b"/", headers)
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_most_handshakes_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    monkeypatch.setattr(ws_handshake, "_judged", lambda target, _: asked.append(target))
    for name in ("as most clients send it", "in other letters", "as Firefox sends it", "with credentials"):
        refusal(b"/", IN_ORDER[name])
    assert not asked
    refusal(b"/odd", IN_ORDER["one header of two tokens"])
    assert asked == [b"/odd"]


def test_the_acceptance_is_that_of_the_standard() -> None:
    """RFC 6455, section 1.3, has this key and its answer."""
    lines = acceptance(ORDINARY, [(b"x-request-id", b"1")]).split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 101 Switching Protocols"
    assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in lines
    assert accept_key(KEY.decode()) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert lines[-3:] == [b"x-request-id: 1", b"", b""]


async def upgraded(port: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    """What the server answers, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        writer.write(b"GET /a%20b?c=d HTTP/1.1\r\n" + lines + b"\r\n")
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


async def test_a_refused_handshake_reaches_no_application_and_ends_the_connection() -> None:
    app = Echo()
    async with served(app) as port:
        answer = await upgraded(port, REFUSED["another version"][0])
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert app.send is None


async def test_an_application_that_fails_is_a_500_and_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async with served(failing) as port:
        answer = await upgraded(port, ORDINARY)
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_an_application_sees_the_request_and_can_refuse_it_with_a_body() -> None:
    seen: dict[str, Any] = {}

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope, first=await receive())
        headers = [(b"content-type", b"text/plain"), (b"x-a", b"b")]
        await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"no", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b", never"})
        seen["last"] = await receive()

    async with served(refusing) as port:
        head, _, body = (await upgraded(port, [*ORDINARY, (b"sec-websocket-protocol", b"chat, superchat")])).partition(
            b"\r\n\r\n"
        )
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"http/1.1 403 forbidden"
    assert {b"content-length: 9", b"content-type: text/plain", b"x-a: b", b"connection: close"} <= set(lines)
    assert body == b"no, never"
    wanted = ("websocket", "ws", "/a b", b"/a%20b", b"c=d", ["chat", "superchat"], "127.0.0.1")
    names = ("type", "scheme", "path", "raw_path", "query_string", "subprotocols")
    assert (*(seen[name] for name in names), seen["client"][0]) == wanted
    assert "method" not in seen
    assert (seen["first"]["type"], seen["last"]["type"]) == ("websocket.connect", "websocket.disconnect")


async def test_a_client_that_is_gone_before_the_answer_is_a_disconnect() -> None:
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        told.set_result((await receive())["code"])

    async with served(waiting) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % header for header in ORDINARY) + b"\r\n")
        async with asyncio.timeout(60):
            assert await told == 1006


async def test_a_server_that_stops_closes_with_1012_and_tells_the_application() -> None:
    app = Echo()
    async with asyncio.timeout(60):
        async with served(app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % header for header in ORDINARY) + b"\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await reader.read() == b"\x88\x02" + (1012).to_bytes(2, "big")
        await app.ended.wait()
        writer.close()
    assert app.end["code"] == 1012


async def test_a_client_is_pinged_and_nobody_waits_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = WebSocketConnection.begin

    def often(self: WebSocketConnection, *arguments: Any) -> None:
        self._config.ws_ping_interval = 0.01
        begin(self, *arguments)

    monkeypatch.setattr(WebSocketConnection, "begin", often)
    async with served(Echo()) as port, viewing(port) as viewer:
        pings = [await viewer.frame() for _ in range(3)]
    assert [(opcode, len(data)) for opcode, data in pings] == [(9, 4)] * 3


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 1_000_000])
async def test_messages_of_any_size_come_whole(size: int) -> None:
    """The length of a frame has one of three forms."""
    data = b"x" * size

    async def sending(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": data})
        await send({"type": "websocket.send", "text": "é"})
        await receive()

    async with (
        served(sending) as port,
        connect(f"ws://127.0.0.1:{port}", max_size=None, open_timeout=60, ping_timeout=None) as client,
    ):
        assert [await client.recv(), await client.recv()] == [data, "é"]
