"""One connection of a program: which host it is for, whether a rule permits it, and then its bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from app.core.addresses import unmapped
from app.core.hosts import IPAddress
from app.core.http_rules import HttpRule
from app.core.secrets import PLAIN_PORT
from app.egress.client_hello import RECORD, ClientHello
from app.egress.dialling import NotDialled
from app.egress.farewell import say_goodbye
from app.egress.host_certificates import refusal_of
from app.egress.http_connection import HttpConnection
from app.egress.judging import Judge
from app.egress.names import NameTable
from app.egress.reasons import Reason
from app.egress.request_path import shown_path
from app.egress.sockets import acknowledge, bound_memory, reset
from app.egress.splice import Splice
from app.egress.streams import ByteStream, SocketStream
from app.egress.tls_stream import TlsStream

if TYPE_CHECKING:
    import h11

    from app.egress.network import SandboxNetwork

METHOD_SHOWN = 32  # characters of a method in an event
RULE_SHOWN = 400  # characters of a rule in an event: the longest name with 16 ports has 355
_PIECE = 16 * 1024


class Cut(Exception):
    """The connection ends here, and is told as refused."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Destination:
    """What a program wants to reach: the host of a name, or else an address."""

    name: str | None
    address: IPAddress | None
    port: int

    @classmethod
    def of(cls, inside: socket.socket, names: NameTable) -> Destination:
        """What the program connected to: the listener's address is every address."""
        host, port, *_ = inside.getsockname()
        address = _address(host)
        name = names.name_of(address)
        return cls(name, None if name else address, port)

    @property
    def host(self) -> str:
        return self.name or str(self.address)


@lru_cache(maxsize=1024)
def _address(text: str) -> IPAddress:
    """Kept, as reading one takes 0.06 ms with cold caches."""
    return unmapped(ip_address(text.partition("%")[0]))


class ProgramConnection:
    """Owns `inside`, the accepted socket. `wide` lets the kernel hold more for it."""

    def __init__(self, network: SandboxNetwork, inside: socket.socket, destination: Destination, *, wide: bool) -> None:
        self._network, self._turns, self._inside, self._wide = network, network.turns, inside, wide
        self._times = network.shared.times
        self._destination, self._name, self._port = destination, destination.name, destination.port
        self._rule = network.rule_for(destination.host, self._port)
        self._dialled: IPAddress | None = None
        self._outside: list[socket.socket] = []
        self._sent = self._received = 0
        self._sent_before = self._received_before = 0  # what requests have been told with
        self._has_refused = self._has_dialled = False
        self._is_told = self._has_begun = self._is_cut = False
        self._is_raw = self._is_unread = False  # how its bytes pass, once that is decided
        self._read: HttpConnection | None = None
        self._began = time.monotonic()

    async def run(self) -> None:
        """Returns when both sockets are closed, and the end was told. Raises nothing but CancelledError."""
        is_whole, self._has_begun = False, True
        try:
            bound_memory(self._inside, wide=self._wide)
            await self._pass()
            is_whole = True
        except Cut as cut:
            self._tell(cut.reason)
        except NotDialled as failure:
            self._tell(failure.reason)
        except OSError:  # one side was reset, and so is the other
            pass
        except asyncio.CancelledError:
            if not self._is_cut:
                raise
            self._tell(Reason.CHANGED)
        finally:
            self._tell(None)
            for connection in (self._inside, *self._outside):
                self._close(connection, with_reset=not is_whole)

    def is_cut_by_change(self) -> bool:
        """Judges the connection by the network's rules, which are new. If it returns True, its task has to be
        cancelled. What passes unread needs a rule that lets it pass so."""
        self._rule = self._network.rule_for(self._destination.host, self._port)
        permitted = self._rule is not None and (
            self._rule.raw or not (self._is_raw or (self._is_unread and self._rule.http))
        )
        self._is_cut |= self._has_begun and not permitted  # a connection that is cut stays so
        return self._is_cut

    async def is_request_cut_by_change(self) -> bool:
        """Likewise of the HTTP request that is under way, where the host is still permitted."""
        permitted = self._read is None or await self._read.is_permitted()
        self._is_cut |= not permitted
        return self._is_cut

    async def _pass(self) -> None:
        if self._rule is not None and self._rule.raw:
            self._is_raw = True
            await self._splice(await self._dial(), b"")
        elif self._name is None:
            raise Cut(Reason.RULE)
        else:
            await self._pass_named(self._name)

    async def _pass_named(self, name: str) -> None:
        try:
            async with asyncio.timeout(self._times.first) as patience:
                # Made while the program writes its own: with cold caches it takes 0.1 ms.
                hello = None if self._port == PLAIN_PORT or self._reads_tls else ClientHello(name)
                first = await self._receive()
                if not first:
                    raise Cut(Reason.SILENT)
                if first[0] == RECORD and self._reads_tls:
                    await self._pass_read_tls(name, first, patience)
                elif first[0] == RECORD:
                    await self._pass_tls(hello or ClientHello(name), first, patience)
                elif first[:1].isalpha():
                    hello = None  # it has 10 KiB, and HTTP may last
                    await self._pass_http(name, first, partial(patience.reschedule, None))
                else:
                    raise Cut(Reason.PROTOCOL)
        except TimeoutError as error:  # which the kernel's ETIMEDOUT is as well
            raise Cut(Reason.SILENT) if patience.expired() else error from None

    # --- TLS

    @property
    def _reads_tls(self) -> bool:
        return self._rule is not None and bool(self._rule.http)

    async def _pass_tls(self, hello: ClientHello, first: bytes, patience: asyncio.Timeout) -> None:
        read = bytearray(first)
        hello.feed(first)
        while not hello.is_read:
            if self._turns.over:
                await self._turns.next()
            more = await self._receive()
            if not more:
                raise Cut(Reason.SILENT)
            read += more
            hello.feed(more)
        patience.reschedule(None)
        if self._reads_tls:  # since its first bytes came
            raise Cut(Reason.CHANGED)
        if hello.refusal is not None or self._rule is None:
            self._tell(hello.refusal or Reason.RULE)
            await self._say_goodbye(hello.alert)
            return
        self._is_unread = True
        try:
            outside = await self._dial()
        except NotDialled as failure:
            self._tell(failure.reason)
            await self._say_goodbye(hello.alert)
            return
        await self._splice(outside, bytes(read))

    async def _say_goodbye(self, data: bytes) -> None:
        await say_goodbye(self._turns, self._inside, data, self._times.farewell)

    # --- HTTP

    async def _pass_http(self, name: str, first: bytes, heard: Callable[[], None]) -> None:
        stream = SocketStream(self._turns, self._inside, self._count_sent)
        await self._http(name, b"http", stream, self._dial_plain, heard).run(first)
        await self._say_goodbye(b"")

    async def _pass_read_tls(self, name: str, first: bytes, patience: asyncio.Timeout) -> None:
        """TLS ends here, and begins anew for the host."""
        context = self._context(name)
        stream = TlsStream(self._turns, self._inside, context, self._count_sent, ragged=True, received=first)
        try:
            await stream.shake_hands()
        except ssl.SSLError as error:
            patience.reschedule(None)
            self._tell(refusal_of(stream.tls, error))
            await self._say_goodbye(stream.last_words())
            return
        except ConnectionAbortedError as error:  # it has said too much
            raise Cut(Reason.TLS) from error
        # There are no tickets to send now. A client without TCP_NODELAY sends its request when its last message of the
        # handshake is acknowledged.
        acknowledge(self._inside)
        heard = partial(patience.reschedule, None)
        await self._http(name, b"https", stream, partial(self._dial_tls, name), heard).run(b"")
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._times.farewell):
                await stream.end()
        await self._say_goodbye(b"")

    def _context(self, name: str) -> ssl.SSLContext:
        """Raises Cut."""
        authority = self._network.authority
        if authority is None:
            raise Cut(Reason.AUTHORITY)
        try:
            return self._network.shared.certificates.context(authority, name)
        except OSError as error:
            raise Cut(Reason.DESCRIPTORS) from error
        except ValueError as error:
            raise Cut(Reason.AUTHORITY) from error

    def _http(
        self,
        name: str,
        scheme: bytes,
        program: ByteStream,
        dial: Callable[[], Awaitable[ByteStream]],
        heard: Callable[[], None],
    ) -> HttpConnection:
        judge = Judge(self._turns, scheme, name, self._port, self._http_rules)
        is_private = scheme == b"https" and self._port != PLAIN_PORT
        put = partial(self._network.placeholders.put, host=name, verified_tls=is_private)
        kept, seconds, refused = self._network.kept, self._times.answer, self._request_refused
        self._read = HttpConnection(
            self._turns, program, kept, seconds, judge=judge, put=put, dial=dial, heard=heard, refused=refused
        )
        return self._read

    def _http_rules(self) -> Sequence[HttpRule] | None:
        """Those of now, for each request anew. Without any, every request is permitted."""
        rules = self._network.rules_for(self._destination.host, self._port)
        return ([http for rule in rules for http in rule.http] or [HttpRule()]) if rules else None

    async def _dial_plain(self) -> ByteStream:
        """Raises NotDialled."""
        return SocketStream(self._turns, await self._dial(), self._count_received)

    async def _dial_tls(self, name: str) -> ByteStream:
        """Raises NotDialled."""
        outside = await self._dial()
        begin = self._network.shared.upstream_tls.begin
        return await begin(self._turns, outside, name, self._dialled, self._count_received)

    def _request_refused(self, reason: str, request: h11.Request | None) -> None:
        self._has_refused = True
        if request is None:
            self._event("request", reason)
        else:
            method = request.method[:METHOD_SHOWN].decode("latin-1")
            self._event("request", reason, method=method, path=shown_path(request.target))

    @property
    def _rule_text(self) -> str | None:
        text = str(self._rule) if self._rule is not None else None
        return text if text is None or len(text) <= RULE_SHOWN else f"{text[: RULE_SHOWN - 1]}…"

    # --- both sides

    async def _dial(self) -> socket.socket:
        """Raises NotDialled."""
        while self._outside:
            self._close(self._outside.pop())
        host = self._destination.address or self._destination.host
        try:
            outside, self._dialled = await self._network.shared.dialler.dial(
                self._turns, host, self._port, wide=self._wide
            )
        except NotDialled as failure:
            self._dialled = failure.address
            raise
        self._has_dialled = True
        self._outside.append(outside)
        return outside

    async def _splice(self, outside: socket.socket, first: bytes) -> None:
        await self._turns.send(outside, first)
        await Splice(self._turns, self._inside, outside, self._network.kept, self._count).run()

    async def _receive(self) -> bytes:
        data = await self._turns.receive(self._inside, _PIECE)
        self._count(len(data), 0)
        return data

    def _count(self, sent: int, received: int) -> None:
        self._sent += sent
        self._received += received
        if not self._network.count(sent + received):
            raise Cut(Reason.BYTES)

    def _count_sent(self, size: int) -> None:
        self._count(size, 0)

    def _count_received(self, size: int) -> None:
        self._count(0, size)

    def _close(self, connection: socket.socket, *, with_reset: bool = False) -> None:
        self._turns.forget(connection.fileno())
        with contextlib.suppress(OSError):
            if with_reset:
                reset(connection)
            else:
                connection.close()

    def _tell(self, reason: str | None) -> None:
        """Tells of the connection, once, unless all that was in it are requests that were refused. The gateway knows of
        a refusal before the program does."""
        if self._is_told:
            return
        self._is_told = True
        if reason is not None or self._has_dialled or not self._has_refused:
            self._event("connection", reason)

    def _event(self, kind: str, reason: str | None, **request: str) -> None:
        """With the bytes since the event before. `request`: its method and path."""
        sent, received = self._sent - self._sent_before, self._received - self._received_before
        self._sent_before, self._received_before = self._sent, self._received
        self._network.told.event(
            kind,
            reason=reason,
            name=self._name,
            address=self._dialled or self._destination.address,
            port=self._port,
            rule=self._rule_text,
            bytes_sent=sent,
            bytes_received=received,
            duration_seconds=round(time.monotonic() - self._began, 6),
            **request,
        )
