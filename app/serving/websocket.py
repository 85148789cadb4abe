"""The server's end of a WebSocket, for an application of ASGI: the frames by the protocol of `websockets`.

uvicorn has such a class. It takes the request apart a second time, and keeps a queue, an event and a protocol for the
handshake. That was a seventh of the gateway's processor time of a short execution with its stream.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Protocol, Side, State

from app.serving.ws_handshake import acceptance, refusal

CLOSING_SECONDS = 10.0  # for a client to answer our Close
REASON_SECONDS = 1.0  # for a client whose input was refused to read why
_LOG = logging.getLogger("uvicorn.error")
_WEB_SOCKET_SCHEME = {"http": "ws", "https": "wss"}


class WebSocketConnection(asyncio.Protocol):
    """uvicorn's upgrade makes one, then calls `connection_made` and `begin`. At its end it calls `shutdown`."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        self.app_state = app_state
        self.loop = asyncio.get_running_loop()
        self.client: tuple[str, int] | None = None
        self.conn = Protocol(Side.SERVER, state=State.OPEN, max_size=config.ws_max_size, logger=_LOG)
        self.read_paused = False  # a message waits for the application
        self.disconnected = self.is_input_refused = False
        self.close_sent = False
        self.close_timer: asyncio.TimerHandle | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self._config, self._server = config, server_state
        self._messages: deque[dict[str, Any]] = deque()
        self._receiver: asyncio.Future[None] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self.is_answered = False  # the handshake
        self._refusal: tuple[int, list[tuple[bytes, bytes]]] | None = None  # that the application has begun
        self._refusal_body = b""
        self._parts: list[bytes] = []
        self._kind = Opcode.BINARY  # of the message whose parts these are
        self._ping: asyncio.TimerHandle | None = None

    # --- asyncio's, and uvicorn's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._server.connections.add(cast(Any, self))
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._ping, self.close_timer):
            if timer is not None:
                timer.cancel()
        self._ping = self.close_timer = None
        code = CloseCode.NO_STATUS_RCVD if self.is_answered else CloseCode.ABNORMAL_CLOSURE
        self.put({"type": "websocket.disconnect", "code": code})
        self._server.connections.discard(cast(Any, self))
        self.is_answered = self.disconnected = True
        self.writable.set()

    def eof_received(self) -> None:
        return None

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def shutdown(self) -> None:
        if self.is_answered and not self.close_sent:
            self.put({"type": "websocket.disconnect", "code": CloseCode.SERVICE_RESTART})
            self.conn.send_close(CloseCode.SERVICE_RESTART)
            self._write_out()
        elif not self.is_answered:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, [], b"")
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        if self.conn.parser_exc is not None:
            self.close_for_input()
        else:
            self.handle_events()

    # --- the handshake

    def begin(self, scope: Mapping[str, Any], target: bytes) -> None:
        """`scope`: of the request, as the parser of HTTP has it. `target`: its path and query."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        refused = refusal(target, headers)
        if refused is not None:
            self.is_answered = self.close_sent = True
            self.transport.write(refused)
            self.transport.close()
            return
        self.client, self._headers = scope["client"], headers
        path, _, query = target.partition(b"?")
        root: str = scope["root_path"]
        offered = [value for name, value in headers if name == b"sec-websocket-protocol"]
        self.put({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "asgi": {**scope["asgi"], "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": _WEB_SOCKET_SCHEME[scope["scheme"]],
            "server": scope["server"],
            "client": scope["client"],
            "root_path": root,
            "path": root + unquote(path.decode("ascii")),
            "raw_path": root.encode("ascii") + path,
            "query_string": query,
            "headers": headers,
            "subprotocols": [token.strip().decode("latin-1") for value in offered for token in value.split(b",")],
            "state": scope["state"],
            "extensions": {"websocket.http.response": {}},
        }
        task = self.loop.create_task(self._run(scope))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _run(self, scope: dict[str, Any]) -> None:
        try:
            await self._config.loaded_app(scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception:  # a fault of ours ends this WebSocket, and the client is told
            _LOG.exception("the application failed on a WebSocket")
        finally:
            if not self.is_answered and not self.transport.is_closing():
                self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, [], b"")
            if self.close_timer is None:
                self.transport.close()

    def _refuse(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        named = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
        for name, value in self._server.default_headers:
            named.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        named.setdefault("connection", "close")
        named.setdefault("content-length", str(len(body)))
        self.is_answered = self.close_sent = True
        self.put({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL_CLOSURE})
        self.transport.write(Response(status, HTTPStatus(status).phrase, named, body).serialize())
        self.transport.close()

    # --- what the application sends

    async def send(self, message: Any) -> None:
        """Raises ClientDisconnected."""
        if not self.writable.is_set():
            await self.writable.wait()
        if self.disconnected or self.is_input_refused:
            raise ClientDisconnected
        kind = message["type"]
        if kind == "websocket.send" and self.is_answered and not self.close_sent:
            self._send_message(message)
        elif kind == "websocket.close" and self.is_answered and not self.close_sent:
            self._send_close(message.get("code", 1000), message.get("reason") or "")
        elif self.is_answered:
            raise RuntimeError(f"{kind} after the end of a WebSocket, or before its beginning")
        elif kind == "websocket.accept":
            self._accept(message.get("headers", ()))
        elif kind == "websocket.close":
            self._refuse(HTTPStatus.FORBIDDEN, [], b"")
        elif kind == "websocket.http.response.start":
            self._refusal = message["status"], list(message.get("headers", ()))
        elif kind == "websocket.http.response.body" and self._refusal is not None:
            self._refusal_body += message.get("body", b"")
            if not message.get("more_body", False):
                self._refuse(*self._refusal, self._refusal_body)
        else:
            raise RuntimeError(f"{kind} before the beginning of a WebSocket")

    def _accept(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.is_answered = True
        if not self.transport.is_closing():
            self.transport.write(acceptance(self._headers, (*self._server.default_headers, *headers)))
            self._expect_ping()

    def _send_message(self, message: Mapping[str, Any]) -> None:
        if self.conn.state is not State.OPEN:
            raise ClientDisconnected
        data, text = message.get("bytes"), message.get("text")
        if data is not None:
            self.transport.write(_frame_head(Opcode.BINARY, len(data)) + data)
        elif text is not None:
            data = text.encode()
            self.transport.write(_frame_head(Opcode.TEXT, len(data)) + data)

    def _send_close(self, code: int, reason: str) -> None:
        if self.conn.state is not State.OPEN:
            raise ClientDisconnected
        if self.transport.is_closing():
            return
        self.put({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self._write_out()
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSING_SECONDS, self.transport.close)

    def _write_out(self) -> None:
        """What the protocol has to say."""
        self.transport.write(b"".join(self.conn.data_to_send()))

    def _expect_ping(self) -> None:
        if self._config.ws_ping_interval:
            self._ping = self.loop.call_later(self._config.ws_ping_interval, self._send_ping)

    def _send_ping(self) -> None:
        """Nobody waits for its answer. That it cannot be written tells of a client that is gone."""
        if not self.close_sent and not self.transport.is_closing():
            self.conn.send_ping(os.urandom(4))
            self._write_out()
            self._expect_ping()

    # --- what comes

    def put(self, message: dict[str, Any]) -> None:
        """For the application, which takes it with `receive`."""
        self._messages.append(message)
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    @property
    def has_message(self) -> bool:
        return bool(self._messages)

    async def receive(self) -> Any:
        while not self._messages:
            self._receiver = self.loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        return self._messages.popleft()

    def handle_events(self) -> None:
        for event in self.conn.events_received():
            if isinstance(event, Frame):
                self._take(event)

    def _take(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.PING:
                self.handle_ping()
            case Opcode.CLOSE:
                self._take_close()
            case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                if frame.opcode is not Opcode.CONT:
                    self._kind = frame.opcode
                self._parts.append(bytes(frame.data))
                if frame.fin:
                    data, self._parts = b"".join(self._parts), []
                    self.handle_message(self._kind, data)

    def handle_message(self, kind: Opcode, data: bytes) -> None:
        """Nothing is read on until the application has taken it."""
        if self.close_sent:
            return
        content = {"text": data.decode()} if kind is Opcode.TEXT else {"bytes": data}
        self.put({"type": "websocket.receive", **content})
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def handle_ping(self) -> None:
        self._write_out()

    def _take_close(self) -> None:
        received = self.conn.close_rcvd
        if self.close_sent:
            if self.close_timer is not None:
                self.close_timer.cancel()
                self.close_timer = None
                self.transport.close()
        elif received is not None and not self.transport.is_closing():
            self.put({"type": "websocket.disconnect", "code": received.code, "reason": received.reason})
            self._write_out()
            self.transport.close()

    def close_for_input(self) -> None:
        """What came is no WebSocket, or too much. The protocol has a Close that says why. Nothing more is read, and the
        client has a moment to read the reason: a close at once would reset the connection, as the client has sent bytes
        that were not read."""
        sent = self.conn.close_sent
        code, reason = (sent.code, sent.reason) if sent is not None else (CloseCode.PROTOCOL_ERROR.value, "")
        _LOG.warning("a WebSocket of %s was closed with %d: %s", self.client[0] if self.client else "", code, reason)
        self.put({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._write_out()
        self.is_input_refused = self.close_sent = True
        self.transport.pause_reading()
        self.close_timer = self.loop.call_later(REASON_SECONDS, self.transport.abort)


def _frame_head(opcode: Opcode, size: int) -> bytes:
    """Of a whole message (RFC 6455, section 5.2). A server masks nothing."""
    if size < 126:
        return bytes((0x80 | opcode, size))
    if size < 1 << 16:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big")
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big")
