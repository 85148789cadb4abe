"""A server that answers what a test says, over real connections: no box, no route of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.boxlite.double.connection import Connection
from tests.boxlite.double.http import Request, Response

CERTIFICATES = Path(__file__).parent / "certificates"  # of a CA whose key nobody has, and of `localhost`

Answering = Callable[[Request], Awaitable[Response]]


@dataclass
class AnsweringServer:
    """`answer` may be replaced at any time."""

    answer: Answering
    port: int = 0
    tls: bool = False
    connections: int = 0  # that were opened
    requests: list[Request] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)  # of connections that are open

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}" if self.tls else f"http://127.0.0.1:{self.port}"

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            await Connection(reader, writer, self._answered).serve()
        finally:
            self.writers.discard(writer)

    async def _answered(self, request: Request) -> Response:
        self.requests.append(request)
        return await self.answer(request)

    async def drop_all(self) -> None:
        """Ends all connections, as a server does with those that are idle."""
        for writer in tuple(self.writers):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def answering(answer: Response | Answering, *, tls: bool = False) -> AsyncIterator[AnsweringServer]:
    async def always(_: Request) -> Response:
        assert isinstance(answer, Response)
        return answer

    server = AnsweringServer(always if isinstance(answer, Response) else answer, tls=tls)
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATES / "localhost.pem")
    async with await asyncio.start_server(server, "127.0.0.1", 0, ssl=context) as listener:
        server.port = listener.sockets[0].getsockname()[1]
        try:
            yield server
        finally:
            await server.drop_all()


def response(
    status: int = 200,
    *,
    json: object = None,
    text: str | None = None,
    html: str | None = None,
    content: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A body in one of four ways. `content` has the type that `headers` say."""
    lines = tuple((headers or {}).items())
    if json is not None:
        return Response(status, _dumped(json), "application/json", lines)
    if text is not None:
        return Response(status, text.encode(), "text/plain; charset=utf-8", lines)
    if html is not None:
        return Response(status, html.encode(), "text/html", lines)
    return Response(status, content, None, lines)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


@asynccontextmanager
async def raw_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The URL of a server that does with each connection what `talk` does, and then ends it. Its client has to end all
    connections."""
    talking: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(asyncio.get_running_loop().create_task(serve(reader, writer)))

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with asyncio.timeout(60):
            await asyncio.gather(*talking)
