"""The whole edge over a NullBackend: in process for HTTP, on a loopback port for WebSocket."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from app.api.context import RequestTimeouts
from app.core.capabilities import Capability
from app.core.policy import DEFAULT_PROFILES, Filesystem, Policy
from app.core.registry import Registry
from app.core.sandboxes import Capacity, Sandboxes
from app.main import create_app
from app.serving.gateway import bind
from app.serving.http_bounds import BoundedHttp
from app.serving.ws_bounds import BoundedWebSocket
from app.settings import Settings, load_settings
from app.telemetry import Telemetry
from tests.null_backend import CAPABILITIES, NullBackend

PROFILES = {
    **DEFAULT_PROFILES,
    "narrow": Policy(profile="narrow", filesystem=Filesystem(("/usr",), ("/workspace",))),
}

VM_CAPABILITIES = frozenset(
    {
        Capability.STDIN,
        Capability.SIGNALS,
        Capability.SIGNAL_GROUP,
        Capability.PTY,
        Capability.IMAGES,
        Capability.LIMIT_CPUS,
        Capability.LIMIT_MEMORY,
        Capability.STORAGE_DISK,
        Capability.LIMIT_DISK,
    }
)


def vm(*more: Capability, kind: type[NullBackend] = NullBackend, **options: Any) -> NullBackend:
    """What the runtime boxlite can, and `more`."""
    return kind("boxlite", tier="vm", aliases=("vm", "microvm"), capabilities=VM_CAPABILITIES | set(more), **options)


def kernel(*more: Capability, lacks: Collection[Capability] = (), **options: Any) -> NullBackend:
    """The runtime process, with `more` and without what it `lacks`."""
    return NullBackend(capabilities=CAPABILITIES - {Capability.IMAGES, *lacks} | set(more), **options)


class OwnTurns(httpx.ASGITransport):
    """A request is a callback of the loop by itself, as with a server. What its test does before and after is not
    measured with it (`tests/callbacks.py`)."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        answer = await super().handle_async_request(request)
        await asyncio.sleep(0)
        return answer


class Service:
    def __init__(
        self,
        backends: list[NullBackend] | None = None,
        *,
        disabled: tuple[str, ...] = (),
        capacity: Capacity | None = None,
        settings: Settings | None = None,
        key_hashes: tuple[str, ...] = (),
        timeouts: RequestTimeouts | None = None,
        default: str = "process",
        profiles: Mapping[str, Policy] = PROFILES,
    ) -> None:
        self.backends = [NullBackend()] if backends is None else backends
        self.log = io.StringIO()
        key_names = {digest: f"key {number}" for number, digest in enumerate(key_hashes)}
        self.telemetry = Telemetry(stream=self.log, key_names=key_names)
        self.registry = Registry(self.backends, default=default, disabled=disabled)
        self.sandboxes = Sandboxes(self.registry, capacity or Capacity(), self.telemetry, shared=len(key_hashes) > 1)
        self.settings = settings or load_settings()
        self.app = create_app(
            self.settings,
            self.sandboxes,
            self.registry,
            telemetry=self.telemetry,
            key_hashes=key_hashes,
            profiles=profiles,
            timeouts=timeouts,
        )

    @property
    def backend(self) -> NullBackend:
        return self.backends[0]

    @property
    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        transport = OwnTurns(self.app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000", **options) as client:
                yield client
        finally:
            await self.sandboxes.aclose()

    @asynccontextmanager
    async def served(self, *, bounded: bool = False) -> AsyncIterator[LiveService]:
        """`bounded`: with the gateway's small send buffers. Behind those a reader that shares our loop loses output
        which is in memory alone, as here, where nothing is stored on disk."""
        listener = bind("127.0.0.1", 0) if bounded else socket.create_server(("127.0.0.1", 0))
        listener.listen()  # who is told the port may connect at once
        config = uvicorn.Config(
            self.app,
            http=BoundedHttp.with_stall(self.settings.transfers.stall_seconds),
            ws=BoundedWebSocket,
            ws_max_size=1024 * 1024,
            proxy_headers=bool(self.settings.trusted_proxies),
            forwarded_allow_ips=list(self.settings.trusted_proxies),
            ws_ping_interval=15,
            ws_ping_timeout=None,
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        port: int = listener.getsockname()[1]
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=90) as client:
                yield LiveService(self, client, port)
        finally:
            server.should_exit = True
            await serving
            listener.close()


class LiveService:
    """A running service and its address."""

    def __init__(self, service: Service, client: httpx.AsyncClient, port: int) -> None:
        self.service = service
        self.client = client
        self.port = port

    async def start(self, *command: str, sandbox: str | None = None, **body: Any) -> str:
        """Starts a command, in a new sandbox by default; the path of its execution."""
        if sandbox is None:
            sandbox = (await self.client.post("/sandboxes", json={})).json()["id"]
        answer = await self.client.post(f"/sandboxes/{sandbox}/executions", json={"command": list(command), **body})
        assert answer.status_code == 201, answer.text
        return answer.headers["location"]

    def stream(self, path: str, query: str = "", **options: Any) -> connect:
        options.setdefault("compression", None)
        options.setdefault("max_size", None)
        patience = {"open_timeout": 60, "ping_timeout": None, "proxy": None}
        return connect(f"ws://127.0.0.1:{self.port}{path}/stream{query}", **(patience | options))


async def frames_of(socket_: ClientConnection) -> tuple[list[dict[str, Any]], dict[int, bytes]]:
    """Everything until the close: text frames in order, and the bytes of each channel."""
    texts: list[dict[str, Any]] = []
    channels = {1: b"", 2: b""}
    async for frame in socket_:
        if isinstance(frame, str):
            texts.append(json.loads(frame))
        else:
            assert len(frame) <= 64 * 1024 + 1
            channels[frame[0]] += frame[1:]
    return texts, channels


async def text_of(socket_: ClientConnection) -> dict[str, Any]:
    """The next frame, which must be text."""
    frame = await socket_.recv()
    assert isinstance(frame, str), frame[:64]
    found: dict[str, Any] = json.loads(frame)
    return found


async def create(client: httpx.AsyncClient, **body: Any) -> str:
    answer = await client.post("/sandboxes", json=body)
    assert answer.status_code in {200, 201}, answer.text
    found: str = answer.json()["id"]
    return found


async def start(client: httpx.AsyncClient, sandbox_id: str, *command: str, **body: Any) -> str:
    """The path of the new execution."""
    answer = await client.post(f"/sandboxes/{sandbox_id}/executions", json={"command": list(command), **body})
    assert answer.status_code == 201, answer.text
    path: str = answer.headers["location"]
    return path


async def call(
    app: Any,
    method: str,
    path: str,
    incoming: Iterable[Mapping[str, Any]],
    headers: Sequence[tuple[str, str]] = (("host", "localhost"), ("content-type", "application/json")),
    receive: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
) -> list[dict[str, Any]]:
    """One request by hand: what the server would hand over, message by message, then silence, or what
    `receive` gives; what was sent back."""
    sent: list[dict[str, Any]] = []
    path, _, query = path.partition("?")
    waiting = iter(incoming)

    async def listed() -> Mapping[str, Any]:
        for message in waiting:
            return message
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    await app(scope, receive or listed, send)
    return sent
