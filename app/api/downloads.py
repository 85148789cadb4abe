"""Answers that are not held in memory: piece by piece to a client that may be slow, or leave, at any moment."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.deps import edge_of, request_id_of
from app.api.hangup import ClientGone, until_disconnect
from app.core.errors import BackendFailure
from app.core.transfers import closing

_EXTENSION = "bulkhead.transport"  # app/http_bounds.py puts it into the scope


class Stalled(Exception):
    """The client took nothing for too long."""


class Outlet:
    """The way to one client. Nothing is sent before the first piece is there, so what goes wrong until then is a
    problem body; what goes wrong later can only cut the connection."""

    def __init__(self, scope: Scope, send: Send, stall_seconds: float) -> None:
        self.begun = False
        self._send = send
        self._stall_seconds = stall_seconds
        self.transport: asyncio.Transport | None = scope.get("extensions", {}).get(_EXTENSION, {}).get("transport")

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self.begun = True
        await self._patiently({"type": "http.response.start", "status": status, "headers": pairs})

    async def deliver(self, status: int, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> None:
        async with closing(pieces):
            async for piece in pieces:
                if not self.begun:
                    await self.begin(status, headers)
                await self._patiently({"type": "http.response.body", "body": piece, "more_body": True})
            if not self.begun:
                await self.begin(status, headers)

    async def finish(self) -> None:
        await self._patiently({"type": "http.response.body", "body": b"", "more_body": False})

    async def _patiently(self, message: Message) -> None:
        """The server waits, before it takes a message, until the client has taken most of what came before. Raises
        Stalled."""
        untaken = -1
        while True:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    return await self._send(message)
            except TimeoutError:
                untaken, before = self._untaken(), untaken
                if untaken in {0, before}:
                    raise Stalled from None

    def _untaken(self) -> int:
        """Bytes that wait for the client, in the server and in the kernel. It is 0 where nobody can tell."""
        if self.transport is None or self.transport.is_closing():
            return 0
        descriptor = self.transport.get_extra_info("socket").fileno()
        (queued,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))  # tcp(7): SIOCOUTQ
        return self.transport.get_write_buffer_size() + int(queued)


class Download(Response):
    """`work` sends an answer through the outlet, in the task of the request. It is cancelled when the client hangs up.
    What it raises before it began is answered as a problem."""

    def __init__(self, request: Request, work: Callable[[Outlet], Awaitable[None]]) -> None:
        super().__init__()
        self._request = request
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        edge = edge_of(self._request)
        outlet = Outlet(scope, send, edge.transfers.stall_seconds)
        try:
            await until_disconnect(receive, self._work(outlet))
            await outlet.finish()  # here, as a server calls a client gone once the answer is complete
        except ClientGone:
            raise
        except Exception as error:
            if not outlet.begun:
                raise
            if isinstance(error, BackendFailure):
                edge.journal.failure(request_id=request_id_of(self._request), error=error)
            await _cut(outlet, receive)
            raise ClientGone from error


_NO_LINGER = struct.pack("ii", 1, 0)  # socket(7): what the kernel still holds for the client is dropped, with a reset


async def _cut(outlet: Outlet, receive: Receive) -> None:
    """Never a well-formed end. Without a transport the server does it, when it sees an answer that is not complete."""
    if outlet.transport is None:
        return
    if not outlet.transport.is_closing():
        outlet.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    outlet.transport.abort()  # to close it would wait for a client that takes nothing
    while (await receive())["type"] != "http.disconnect":
        pass
