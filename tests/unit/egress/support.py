"""A sandbox's network on the test's own loopback.

In a sandbox every address leads to the listeners. Here all of 127.0.0.0/8 is the loopback's, so a listener on
127.77.0.1 stands for what a name was given as its address. The real hosts are servers on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from types import MappingProxyType
from typing import Any, cast

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from app.core.network_rules import parse_rule
from app.egress.authority import Authority, new_authority
from app.egress.config import EgressConfig
from app.egress.network import SandboxNetwork, Shared
from app.egress.protocol import (
    BytesMoved,
    EventsDropped,
    KeyPair,
    NameGiven,
    NetworkEventTold,
    NetworkSecret,
    NetworkSetup,
    Report,
)
from app.egress.times import Times
from app.egress.upstream_tls import trusting

NAME = "index.example.org"
GIVEN = "127.77.0.1"  # the address that NAME was given
HOST = "127.0.0.1"  # where it is
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FakeGateway:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        self.dropped = 0
        self.moved: list[int] = []
        self.is_behind = False
        self.holds_names_back = False
        self.held_back: list[Callable[[], None]] = []
        self._changed = asyncio.Event()

    def tell(self, report: Report, told: Callable[[], None] | None = None) -> None:
        if isinstance(report, NameGiven):
            self.names[report.name] = report.address
        elif isinstance(report, NetworkEventTold):
            self.events.append(dict(report.event))
        elif isinstance(report, EventsDropped):
            self.dropped += report.count
        elif isinstance(report, BytesMoved):
            self.moved.append(report.count)
        self._changed.set()
        if told is not None:
            if self.holds_names_back:
                self.held_back.append(told)
            else:
                told()

    async def event(self, number: int = 0) -> dict[str, Any]:
        """Waits until there are so many events, and returns one."""
        async with asyncio.timeout(60):
            while len(self.events) <= number:
                self._changed.clear()
                await self._changed.wait()
        return self.events[number]


class FakeDns(asyncio.DatagramProtocol):
    """A DNS server. `addresses` by name; a name that is not there does not exist. It counts its questions, and is
    silent while `is_silent`. `change` makes the datagrams of an answer."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {NAME: [HOST]}
        self.asked: Counter[str] = Counter()
        self.is_silent = False
        self.change: Callable[[dns.message.Message], list[bytes]] = lambda answer: [answer.to_wire()]
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, sender: tuple[str | Any, int]) -> None:
        question = dns.message.from_wire(data)
        asked = question.question[0]
        name = asked.name.to_text(omit_final_dot=True)
        self.asked[name] += 1
        if self.is_silent or self._transport is None:
            return
        answer = dns.message.make_response(question)
        kind = dns.rdatatype.to_text(asked.rdtype)
        if name not in self.addresses:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        found = [address for address in self.addresses.get(name, []) if (":" in address) is (kind == "AAAA")]
        if found and kind in ("A", "AAAA"):
            answer.answer.append(dns.rrset.from_text_list(asked.name, 60, "IN", kind, found))
        for datagram in self.change(answer):
            self._transport.sendto(datagram, sender)


class Site:
    """A sandbox's network, the DNS server that it asks, and one real host."""

    def __init__(
        self,
        network: SandboxNetwork,
        gateway: FakeGateway,
        dns_server: FakeDns,
        port: int,
        resolver: tuple[str, int],
        dns_at: tuple[str, int],
        given: str = GIVEN,
    ) -> None:
        self.given = given  # the address that NAME was given
        self.network, self.gateway, self.dns, self.port = network, gateway, dns_server, port
        self.resolver, self.dns_at = resolver, dns_at
        self.opened: list[asyncio.BaseTransport | asyncio.StreamWriter] = []  # closed at the end

    async def connect(self, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As a program does that was given an address for NAME."""
        reader, writer = await asyncio.open_connection(self.given, self.port, **more)
        self.opened.append(writer)
        return reader, writer

    @staticmethod
    def unconnected() -> socket.socket:
        opened = socket.socket()
        opened.setblocking(False)
        return opened

    async def ask(self, data: bytes) -> bytes:
        """Sends bytes, ends the input, and returns all that comes back."""
        reader, writer = await self.connect()
        writer.write(data)
        with contextlib.suppress(OSError):  # it is reset already, which the next line tells
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 60)

    @asynccontextmanager
    async def neighbour(self, sandbox: str, given: str, client: str) -> AsyncIterator[Site]:
        """Another sandbox of the same egress process, with the same rules."""
        endpoint, listener = program_sockets(given, self.port)
        setup, gateway = NetworkSetup(self.network.rules, {NAME: given}), FakeGateway()
        network = SandboxNetwork(sandbox, setup, endpoint, [listener], self.network.shared, gateway, client)
        found = Site(network, gateway, self.dns, self.port, endpoint.getsockname(), self.dns_at, given)
        try:
            yield found
        finally:
            found.close()
            await network.aclose()

    def close(self) -> None:
        for opened in self.opened:
            opened.close()


def program_sockets(given: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A resolver's and a listener, as the launcher makes them."""
    listener = socket.create_server((given, port), backlog=128, reuse_port=True)
    endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    endpoint.bind((given, 0))
    return endpoint, listener


@cache
def operators_authority() -> KeyPair:
    """Who signs the certificates of real hosts, and is trusted."""
    return new_authority()


@cache
def trusted_hosts() -> ssl.SSLContext:
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(operators_authority().certificate)
        file.flush()
        return trusting(file.name)


def host_tls(leaf: KeyPair | None = None) -> ssl.SSLContext:
    """What a real host has: by default the right certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf = leaf or Authority(operators_authority()).leaf(NAME)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(leaf.certificate + leaf.key)
        file.flush()
        context.load_cert_chain(file.name)
    return context


@asynccontextmanager
async def site(
    serve: Serve,
    *,
    rules: Sequence[Any] | None = None,
    names: dict[str, str] | None = None,
    permit_nets: Sequence[str] = ("127.0.0.0/8",),
    service: Callable[[int], Sequence[str]] = lambda port: (),
    resolver: str | None = None,
    times: Times = Times(),  # noqa: B008  # it is frozen
    bounds: Mapping[str, Any] = MappingProxyType({}),
    tls: ssl.SSLContext | None = None,
    authority: KeyPair | None = None,
    secrets: Sequence[NetworkSecret] = (),
    client: str = "",
) -> AsyncIterator[Site]:
    """`serve` is the real host, at a port that is free, with TLS if there is a context. `rules` get this port: by
    default NAME is permitted. `authority` is the sandbox's."""
    async with AsyncExitStack() as stack:
        host = await asyncio.start_server(serve, HOST, 0, ssl=tls)
        stack.callback(host.close)
        port = host.sockets[0].getsockname()[1]
        transport, dns_server = await asyncio.get_running_loop().create_datagram_endpoint(FakeDns, local_addr=(HOST, 0))
        stack.callback(transport.close)
        dns_at = transport.get_extra_info("sockname")
        config = EgressConfig(
            0, tuple(permit_nets), resolver or "{}:{}".format(*dns_at), tuple(service(port)), **bounds
        )
        endpoint, listener = program_sockets(GIVEN, port)
        wanted = [{"host": NAME, "ports": [port]}] if rules is None else rules
        parsed = tuple(parse_rule({**rule, "ports": rule.get("ports", [port])}) for rule in wanted)
        setup = NetworkSetup(parsed, names or {NAME: GIVEN}, authority, tuple(secrets))
        gateway = FakeGateway()
        shared = Shared.of(config, times, trusted_hosts())
        stack.callback(shared.spare.close)
        network = SandboxNetwork("a", setup, endpoint, [listener], shared, gateway, client)
        stack.push_async_callback(network.aclose)
        found = Site(network, gateway, dns_server, port, endpoint.getsockname(), dns_at)
        stack.callback(found.close)
        yield found


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what it reads, and ends when the client does."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    opened = writer.get_extra_info("socket")
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
