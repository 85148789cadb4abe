"""The proxy for sandboxes that have sockets of their own machine only: one listener for all of them.

A client says by its credential which sandbox it belongs to. Until then its connection is a newcomer: only what its
first request takes is read, and for a short time. When there are many newcomers the oldest one is closed: a program
that means it has sent its request with the first packet.
"""

from __future__ import annotations

import asyncio
import hmac
import socket

import h11

from app.egress.farewell import say_goodbye
from app.egress.http_connection import HEAD
from app.egress.network import SandboxNetwork, Shared
from app.egress.problems import problem_answer
from app.egress.proxied_connections import ForwardedConnection, ProxiedConnection, TunnelConnection
from app.egress.proxy_requests import NoProxyRequest, credential_of, destination_of
from app.egress.reasons import Reason
from app.egress.sockets import bound_memory
from app.egress.turns import SandboxTurns

NEWCOMERS = 512
# A name that no host can have (RFC 6761, 6.4). A plain request for it is answered here with the sandbox's id, so that a
# box can be asked whether its proxy is this one.
SELF = "bulkhead.invalid"
_PIECE = 16 * 1024
_CHALLENGE = ((b"Proxy-Authenticate", b'Basic realm="bulkhead"'),)


class ConnectProxy:
    """Owns `listener`. Must be closed."""

    def __init__(self, listener: socket.socket, shared: Shared) -> None:
        self._listener, self._shared = listener, shared
        self._turns = SandboxTurns()
        self._sandboxes: dict[str, tuple[bytes, SandboxNetwork]] = {}
        self._newcomers: dict[asyncio.Task[None], None] = {}  # oldest first
        listener.setblocking(False)
        self._turns.read(listener.fileno(), self._accept)

    def add(self, credential: str, network: SandboxNetwork) -> None:
        """From now on whoever shows the credential is served as that sandbox."""
        self._sandboxes[network.sandbox] = credential.encode(), network

    def remove(self, sandbox: str) -> None:
        self._sandboxes.pop(sandbox, None)

    async def aclose(self) -> None:
        newcomers = tuple(self._newcomers)
        for newcomer in newcomers:
            newcomer.cancel()
        await asyncio.gather(*newcomers, return_exceptions=True)
        self._turns.close()
        self._listener.close()

    # --- newcomers

    def _accept(self) -> None:
        try:
            connection = self._shared.spare.accept(self._listener)
        except OSError:
            return
        if len(self._newcomers) >= NEWCOMERS:
            oldest = next(iter(self._newcomers))
            del self._newcomers[oldest]
            oldest.cancel()
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._introduce(connection))
        self._newcomers[task] = None
        task.add_done_callback(lambda ended: self._newcomers.pop(ended, None))

    async def _introduce(self, connection: socket.socket) -> None:
        """Reads the first request, and hands the connection over to its sandbox."""
        is_ours = True
        try:
            bound_memory(connection, wide=False)
            async with asyncio.timeout(self._shared.times.first):
                request, head, rest = await self._read_head(connection)
            is_ours = not await self._hand_over(connection, request, head, rest)
        except h11.RemoteProtocolError:
            await self._answer(connection, problem_answer(Reason.HTTP))
        except (OSError, TimeoutError):
            pass
        finally:
            if is_ours:
                self._turns.forget(connection.fileno())
                connection.close()

    async def _read_head(self, connection: socket.socket) -> tuple[h11.Request, bytes, bytes]:
        """Returns the request, all that was read, and what of it came after a CONNECT. Raises RemoteProtocolError,
        OSError."""
        http, read = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD), bytearray()
        while True:
            data = await self._turns.receive(connection, _PIECE)
            read += data
            http.receive_data(data)
            event = http.next_event()
            if isinstance(event, h11.Request):
                if event.method == b"CONNECT":
                    http.next_event()  # the end of the request, after which h11 reads no more
                return event, bytes(read), http.trailing_data[0]
            if event is not h11.NEED_DATA:
                raise ConnectionResetError

    async def _hand_over(self, connection: socket.socket, request: h11.Request, head: bytes, rest: bytes) -> bool:
        """Whether the sandbox owns the connection from now on."""
        network = self._sandbox_of(request)
        if network is None:
            await self._answer(connection, problem_answer(Reason.CREDENTIAL, _CHALLENGE))
            return False
        try:
            destination = destination_of(request)
        except NoProxyRequest:
            network.told.refusal("request", Reason.PROXY)
            await self._answer(connection, problem_answer(Reason.PROXY))
            return False
        kind: type[ProxiedConnection] = TunnelConnection
        first = rest
        if request.method != b"CONNECT":
            if destination.name == SELF:
                await self._answer(connection, _introduction(network.sandbox))
                return False
            kind, first = ForwardedConnection, _with_close(head)
        self._turns.forget(connection.fileno())
        reason = network.take(connection, destination, first, kind)
        if reason is not None:
            await self._answer(connection, problem_answer(reason))
        return reason is None

    def _sandbox_of(self, request: h11.Request) -> SandboxNetwork | None:
        given = credential_of(request)
        if given is None:
            return None
        user, password = given
        expected, network = self._sandboxes.get(user, (b"", None))
        return network if hmac.compare_digest(password, expected) else None

    async def _answer(self, connection: socket.socket, answer: bytes) -> None:
        await say_goodbye(self._turns, connection, answer, self._shared.times.farewell)


def _introduction(sandbox: str) -> bytes:
    body = sandbox.encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % len(body) + body


def _with_close(head: bytes) -> bytes:
    """The same request, whose answer says that the connection ends with it. Several such headers count together."""
    line, end, rest = head.partition(b"\n")
    return line + end + b"Connection: close\r\n" + rest
