"""One sandbox of a kind behind the whole service, on a loopback port, and hands that speak HTTP to its files."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.application import Application
from app.core.backend import Backend
from app.settings import load_settings
from tests.contract.kinds import Kind
from tests.null_backend import NullBackend
from tests.unit.api.service import Service

MIB = 1024 * 1024
DISK_MIB = 16


class Reading:
    """An application, and how many bytes of a body it has read."""

    def __init__(self, app: ASGIApp) -> None:
        self.size = 0
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting() -> Message:
            message = await receive()
            self.size += len(message.get("body", b""))
            return message

        self.size = 0
        await self._app(scope, counting, send)


@dataclass
class FileRoom:
    kind: Kind
    backend: Backend
    client: httpx.AsyncClient
    port: int
    id: str
    reading: Reading

    def url(self, path: str | bytes, what: str = "files", **query: Any) -> str:
        more = "".join(f"&{name}={value}" for name, value in query.items())
        return f"/sandboxes/{self.id}/{what}?path={quote(path, safe='')}{more}"

    async def call(
        self,
        method: str,
        path: str | bytes,
        what: str = "files",
        *,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> httpx.Response:
        url = self.url(path, what, **query)
        return await self.client.request(method, url, content=content, headers=dict(headers or {}))

    async def get(self, path: str | bytes, **headers: str) -> httpx.Response:
        return await self.call("GET", path, headers=_named(headers))

    async def head(self, path: str | bytes, **headers: str) -> httpx.Response:
        return await self.call("HEAD", path, headers=_named(headers))

    async def put(self, path: str | bytes, content: Any, mode: str = "", **headers: str) -> httpx.Response:
        query = {"mode": mode} if mode else {}
        return await self.call("PUT", path, content=content, headers=_named(headers), **query)

    async def have(self, path: str | bytes, content: bytes = b"x") -> None:
        answer = await self.put(path, content)
        assert answer.status_code in {201, 204}, answer.text

    async def content(self, path: str | bytes) -> bytes:
        answer = await self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.content

    async def names(self, path: str | bytes = ".") -> list[str]:
        answer = await self.call("GET", path, "directory", limit=1000)
        assert answer.status_code == 200, answer.text
        return [item["name"] for item in answer.json()["items"]]

    async def unpack(self, path: str | bytes, data: Any) -> httpx.Response:
        return await self.call("PUT", path, "archive", content=data)

    async def run(self, argv: tuple[str, ...]) -> bytes:
        """Runs a command to its good end: its stdout."""
        answer = await self.client.post(f"/sandboxes/{self.id}/executions", json={"command": list(argv)})
        assert answer.status_code == 201, answer.text
        path = answer.headers["location"]
        ended = (await self.client.get(f"{path}?wait_seconds=30")).json()
        assert ended["exit"]["code"] == 0, (ended, (await self.client.get(f"{path}/output?channel=stderr")).text)
        return (await self.client.get(f"{path}/output")).content

    async def link(self, target: str, path: str) -> None:
        await self.run(self.kind.programs.link(target, f"/workspace/{path}"))

    async def fifo(self, path: str) -> None:
        await self.run(self.kind.programs.fifo(f"/workspace/{path}"))

    @asynccontextmanager
    async def line(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection by hand."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def taken(self, size: int) -> None:
        """Until the service has read so many bytes of the body of the request that began last."""
        async with asyncio.timeout(60):
            while self.reading.size < size:  # noqa: ASYNC110 - the service tells nobody
                await asyncio.sleep(0.005)

    def begin_of(self, method: str, path: str | bytes, what: str = "files", *headers: str) -> bytes:
        lines = [f"{method} {self.url(path, what)} HTTP/1.1", "Host: localhost", *headers]
        return "\r\n".join([*lines, "", ""]).encode()


_SHARED: ContextVar[FileRoom | None] = ContextVar("shared", default=None)


@asynccontextmanager
async def one_file_room(kind: Kind) -> AsyncIterator[None]:
    """Every `file_room` in the block is this one, emptied: for tests that each would wait for the boot of a box."""
    async with file_room(kind) as room:
        token = _SHARED.set(room)
        try:
            yield
        finally:
            _SHARED.reset(token)


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@asynccontextmanager
async def file_room(kind: Kind, **settings: Any) -> AsyncIterator[FileRoom]:
    """At the end the service is stopped, and nothing of it may be left."""
    if (shared := _SHARED.get()) is not None:
        await shared.run(("/bin/sh", "-c", "rm -rf /workspace/*"))
        yield shared
        return
    backend = await kind.open()
    service = Service(
        [cast(NullBackend, backend)], default=backend.info.name, settings=load_settings(**settings)
    )  # whatever it is: the service asks for a Backend
    reading = Reading(service.app)
    service.app = cast(Application, reading)  # what serves it asks for no more than an ASGI application
    async with service.served() as live:
        live.client.timeout = httpx.Timeout(60)
        created = await live.client.post("/sandboxes", json={"limits": {"disk_mib": DISK_MIB, "memory_mib": 64}})
        assert created.status_code == 201, created.text
        yield FileRoom(kind, backend, live.client, live.port, created.json()["id"], reading)
    assert kind.left(backend) == []


def tar_of(*members: tuple[str, Any]) -> bytes:
    """By the standard library: (name, bytes) is a file, (name, None) a directory, (name, TarInfo) that."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def members_of(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return {member.name: member for member in tar.getmembers()}


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return str(answer.json()["type"]).removeprefix("/problems/")
