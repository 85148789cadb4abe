"""A service made of canned answers, so that it can also lie: HTTP/1.1 and WebSocket by hand, on a loopback port.

A test hands over *programs*: `async def program(wire)` speaks for the service on one stream connection, and the nth
connection gets the nth program (the last one again and again). Everything that the client asked stands in `requests`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 4.2.2
SANDBOX, EXECUTION = "sbx_1", "exe_1"
BASE = f"/sandboxes/{SANDBOX}"


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Wire:
    """The service's end of one stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request) -> None:
        self.request = request
        self.sent = {1: b"", 2: b""}
        self._reader, self._writer = reader, writer

    async def _frame(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes([0x80 | opcode, size])
        elif size < 65536:
            head = bytes([0x80 | opcode, 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([0x80 | opcode, 127]) + size.to_bytes(8, "big")
        self._writer.write(head + payload)
        await self._writer.drain()

    async def text(self, **frame: Any) -> None:
        await self._frame(1, json.dumps(frame).encode())

    async def start(self, stdin_bytes: int = 0) -> None:
        out, err = (int(self.request.query.get(f"{name}_offset", 0)) for name in ("stdout", "stderr"))
        await self.text(type="start", stdout_offset=out, stderr_offset=err, stdin_bytes=stdin_bytes, state="running")

    async def output(self, data: bytes, channel: int = 1) -> None:
        self.sent[channel] += data
        await self._frame(2, bytes([channel]) + data)

    async def exit(
        self, reason: str = "exited", code: int | None = 0, exit_code: int | None = None, **more: Any
    ) -> None:
        """`stdout` and `stderr` in `more` say what the channels held in all; the close follows."""
        dropped, sums = more.pop("dropped_bytes", 0), {}
        for name, channel in (("stdout", 1), ("stderr", 2)):
            data = more.pop(name, self.sent[channel])
            sums[name] = {"bytes": len(data), "dropped_bytes": dropped, "sha256": hashlib.sha256(data).hexdigest()}
        await self.text(
            type="exit",
            exit_code=code if exit_code is None else exit_code,
            exit={"reason": reason, "code": code, **more},
            **sums,
        )
        await self.close(1000)

    async def close(self, code: int) -> None:
        await self._frame(8, code.to_bytes(2, "big"))

    def cut(self) -> None:
        self._writer.transport.abort()

    async def read(self) -> bytes | dict[str, Any] | None:
        """The client's next frame: bytes or a JSON object; None when it closed or is gone."""
        try:
            first, second = await self._reader.readexactly(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
            mask = await self._reader.readexactly(4)
            masked = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        key = (mask * (size // 4 + 1))[:size]
        data = (int.from_bytes(masked, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
        match first & 15:
            case 1:
                return json.loads(data)  # type: ignore[no-any-return]  # the client sends objects
            case 2:
                return data
        return None

    async def read_stdin(self) -> bytes:
        """To its end of file."""
        data = b""
        while isinstance(frame := await self.read(), bytes):
            data += frame
        assert frame == {"type": "stdin_eof"}, frame
        return data


Program = Callable[[Wire], Awaitable[None]]
Answer = tuple[int, dict[str, str], bytes]


def problem(status: int, slug: str, title: str, **more: Any) -> Answer:
    body = {"type": f"/problems/{slug}", "title": title, "status": status, "instance": "req_1", **more}
    return status, {"Content-Type": "application/problem+json"}, json.dumps(body).encode()


def answer(status: int, body: Any) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(body).encode()


@dataclass
class FakeService:
    programs: list[Program] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    signals: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    create_reached: asyncio.Event = field(default_factory=asyncio.Event)
    create_gate: asyncio.Event | None = None
    looks: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)  # what a look at the sandbox shows, when there
    looked_at: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    streams: int = 0
    # Held, as the collector takes a task that waits for what nobody else has, once its client is gone.
    serving: set[asyncio.Task[Any] | None] = field(default_factory=set)

    def asked(self) -> list[str]:
        return [str(request) for request in self.requests]

    def body_of(self, what: str) -> Any:
        return next(request.body for request in self.requests if str(request) == what)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        try:
            while (request := await self._read(reader)) is not None:
                self.requests.append(request)
                if request.headers.get("upgrade", "").lower() == "websocket":
                    await self._stream(request, reader, writer)
                    return
                await self._reply(writer, await self._answer(request))
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Request | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        except asyncio.IncompleteReadError:
            return None
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        parts = urlsplit(target)
        return Request(method, parts.path, dict(parse_qsl(parts.query)), headers, json.loads(body) if body else None)

    async def _reply(self, writer: asyncio.StreamWriter, reply: Answer) -> None:
        status, headers, body = reply
        lines = [f"HTTP/1.1 {status} Said", *(f"{k}: {v}" for k, v in headers.items())]
        if status != 204:
            lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()

    async def _answer(self, request: Request) -> Answer:
        canned = self.answers.get(str(request))
        if str(request) == "POST /sandboxes":
            self.create_reached.set()
            if self.create_gate is not None:
                await self.create_gate.wait()
        if canned is not None:
            return canned
        match str(request).replace(SANDBOX, "S").replace(EXECUTION, "E"):
            case "POST /sandboxes":
                return answer(201, {"id": SANDBOX, "runtime": "process", "state": "running"})
            case "GET /sandboxes/S":
                self.looked_at.set()
                return answer(200, await self.looks.get())
            case "POST /sandboxes/S/executions":
                return answer(201, {"id": EXECUTION, "sandbox_id": SANDBOX, "state": "running"})
            case "POST /sandboxes/S/executions/E/signal":
                self.signals.put_nowait(request.body["signal"])
                return 204, {}, b""
            case "DELETE /sandboxes/S/executions/E":
                self.killed.set()
                return 204, {}, b""
            case "DELETE /sandboxes/S":
                return 204, {}, b""
        return problem(404, "not_found", "not found", detail="there is nothing at this path")

    async def _stream(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        canned = self.answers.get(str(request))
        if canned is not None:
            await self._reply(writer, canned)
            return
        accept = base64.b64encode(hashlib.sha1(request.headers["sec-websocket-key"].encode() + GUID).digest()).decode()
        lines = ["HTTP/1.1 101 Up", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        program = self.programs[min(self.streams, len(self.programs) - 1)]
        self.streams += 1
        wire = Wire(reader, writer, request)
        await program(wire)
        while (
            await wire.read() is not None
        ):  # a close with unread bytes would take the last frames away from the client
            pass


@asynccontextmanager
async def fake_service(*programs: Program, kind: type[FakeService] = FakeService) -> AsyncIterator[FakeService]:
    service = kind(list(programs))
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    service.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield service
    finally:
        server.close()
