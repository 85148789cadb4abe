"""The plainest client of a BoxLite server: what is sent and received, and nothing made of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.boxlite.double import Double, Settings
from tests.boxlite.double.machine import namespaces_refused
from tests.require import require

refused: str | None = None  # the answer is the same for every test


@asynccontextmanager
async def box_double(settings: Settings | None = None, **options: Any) -> AsyncIterator[Double]:
    """A running double, or a skip with the reason why this host cannot have one."""
    global refused
    if refused is None:
        refused = await namespaces_refused() or ""
    require("namespaces", not refused, refused)
    async with Double(settings=settings, **options) as double:
        yield double


@dataclass
class CommandResult:
    """Everything that came over one attach, in order and by channel."""

    frames: list[str | bytes] = field(default_factory=list)
    close_code: int | None = None

    def _of(self, channel: int) -> bytes:
        return b"".join(f[1:] for f in self.frames if isinstance(f, bytes) and f[:1] == bytes([channel]))

    @property
    def stdout(self) -> bytes:
        return self._of(1)

    @property
    def stderr(self) -> bytes:
        return self._of(2)

    @property
    def texts(self) -> list[dict[str, Any]]:
        return [json.loads(f) for f in self.frames if isinstance(f, str)]

    @property
    def exit_code(self) -> int | None:
        return next((text["exit_code"] for text in self.texts if text["type"] == "exit"), None)


async def rest(socket: ClientConnection, said: CommandResult | None = None) -> CommandResult:
    """What still comes, however it ends; into `said` for who watches it meanwhile."""
    said = CommandResult() if said is None else said
    with contextlib.suppress(ConnectionClosed):
        while True:
            said.frames.append(await socket.recv())
    said.close_code = socket.close_code
    return said


async def until(holds: Callable[[], bool | Awaitable[bool]], seconds: float = 60) -> None:
    """For what has no event of its own: asked again until it holds."""
    async with asyncio.timeout(seconds):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


def plain_http(double: Double) -> httpx.AsyncClient:
    """With the key, without the proxies of the environment, and without certificates, which take 30 ms to load."""
    headers = {"authorization": f"Bearer {double.key}"}
    return httpx.AsyncClient(base_url=double.url, headers=headers, trust_env=False, timeout=60, verify=False)


class Client:
    def __init__(self, double: Double) -> None:
        self._headers = {"authorization": f"Bearer {double.key}"}
        self._http = plain_http(double)
        self._base = double.url.replace("http://", "ws://")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return await self._http.request(method, path, json=body, **options)

    @asynccontextmanager
    async def stream(self, method: str, path: str) -> AsyncIterator[httpx.Response]:
        async with self._http.stream(method, path) as answer:
            yield answer

    async def raw_attach(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The bytes after the upgrade, for frames that a library keeps to itself."""
        url = httpx.URL(self._base)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        lines = [
            f"GET {path}/attach HTTP/1.1",
            f"host: {url.host}",
            *(f"{name}: {value}" for name, value in self._headers.items()),
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        return reader, writer

    async def ok(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = await self.ask(method, path, body)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def status(self, path: str) -> Any:
        """The `status` of a box or an execution, or the number of its refusal."""
        answer = await self.ask("GET", path)
        return answer.json()["status"] if answer.status_code == 200 else answer.status_code

    async def becomes(self, path: str, status: str | int) -> None:
        async def has_become() -> bool:
            return bool(await self.status(path) == status)

        await until(has_become)

    async def box(self, **options: Any) -> str:
        """A running one."""
        box_id: str = (await self.ok("POST", "/v1/boxes", {"cmd": ["sleep", "infinity"], **options}, status=201))[
            "box_id"
        ]
        await self.ok("POST", f"/v1/boxes/{box_id}/start")
        return box_id

    async def execute(self, box: str, *argv: str, **options: Any) -> str:
        """The path of the execution."""
        body = {"command": argv[0], "args": argv[1:], **options}
        found = await self.ok("POST", f"/v1/boxes/{box}/exec", body, status=201)
        return f"/v1/boxes/{box}/executions/{found['execution_id']}"

    @asynccontextmanager
    async def attached(self, path: str, query: str = "") -> AsyncIterator[ClientConnection]:
        url = f"{self._base}{path}/attach{query}"
        options: dict[str, Any] = {"max_size": None, "open_timeout": 60, "ping_timeout": None, "close_timeout": 1}
        async with connect(url, additional_headers=self._headers, proxy=None, **options) as socket:
            yield socket

    async def follow(self, path: str, *, stdin: bytes | None = b"") -> CommandResult:
        """To the end. `stdin`: sent, and then its end; None leaves it open."""
        async with self.attached(path) as socket:
            if stdin:
                await socket.send(stdin)
            if stdin is not None:
                await socket.send('{"type":"stdin_eof"}')
            return await rest(socket)

    async def run(self, box: str, *argv: str, stdin: bytes = b"", **options: Any) -> CommandResult:
        return await self.follow(await self.execute(box, *argv, **options), stdin=stdin)
