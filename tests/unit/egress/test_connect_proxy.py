"""The proxy of sandboxes that have no listeners: who asks, what for, and that the same rules hold as without it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.egress import connect_proxy
from app.egress.connect_proxy import NEWCOMERS, SELF, ConnectProxy
from app.egress.times import Times
from tests.unit.egress.support import HOST, NAME, Serve, Site, echo, site
from tests.unit.egress.test_bounds import no_more_descriptors
from tests.unit.egress.test_plain_http import Host
from tests.unit.egress.test_tls import client_hello

PASSWORD = "a-long-secret"
RAW = [{"host": NAME, "raw": True}]
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def credential(user: str = "a", password: str = PASSWORD) -> str:
    return f"Proxy-Authorization: Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}\r\n"


def connect(host: str) -> str:
    return f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{credential()}\r\n"


class ProxySite:
    """A sandbox `a` whose connections come by the proxy alone."""

    def __init__(self, at: Site, address: tuple[str, int]) -> None:
        self.at, self.address = at, address
        self.host = f"{NAME}:{at.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address)
        self.at.opened.append(writer)
        return reader, writer

    async def ask(self, data: str | bytes, *, ends: bool = False) -> bytes:
        """Sends bytes, and returns all that comes back."""
        reader, writer = await self.connect()
        writer.write(data if isinstance(data, bytes) else data.encode())
        if ends:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 60)

    async def tunnel(self, host: str | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To a host that is permitted."""
        reader, writer = await self.connect()
        writer.write(connect(host or self.host).encode())
        assert await asyncio.wait_for(reader.readexactly(len(ESTABLISHED)), 60) == ESTABLISHED
        return reader, writer


@asynccontextmanager
async def proxied(serve: Serve, **more: Any) -> AsyncIterator[ProxySite]:
    async with site(serve, **more) as at:
        listener = socket.create_server((HOST, 0), backlog=NEWCOMERS)
        proxy = ConnectProxy(listener, at.network.shared)
        proxy.add(PASSWORD, at.network)
        try:
            yield ProxySite(at, listener.getsockname())
        finally:
            at.close()
            await proxy.aclose()


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def reason(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["reason"])


# --- who asks


@pytest.mark.parametrize(
    "header",
    [
        "",
        credential(password="another"),
        credential(password=""),
        credential(user="b"),
        credential(user=""),
        credential(user="b", password=""),
        credential() + credential(),
        "Proxy-Authorization: Bearer a-long-secret\r\n",
        "Proxy-Authorization: Basic\r\n",
        "Proxy-Authorization: Basic ????\r\n",
        "Proxy-Authorization: Basic YQ==\r\n",  # without a colon
        "Proxy-Authorization: Basic /zp4\r\n",  # a user that is not ASCII
        "Authorization: " + credential().partition(" ")[2],
    ],
)
async def test_request_without_the_credential_is_asked_for_it_and_goes_nowhere(header: str) -> None:
    host = Host()
    async with proxied(host.serve, rules=RAW) as to:
        for line in (f"CONNECT {to.host} HTTP/1.1", f"GET http://{to.host}/ HTTP/1.1", f"GET http://{SELF}/ HTTP/1.1"):
            answer = await to.ask(f"{line}\r\nHost: {to.host}\r\n{header}\r\n")
            assert (status(answer), reason(answer)) == (407, "credential")
            assert b'\r\nProxy-Authenticate: Basic realm="bulkhead"\r\n' in answer
        assert (host.read, to.at.gateway.events, to.at.dns.asked.total()) == ([], [], 0)


async def test_proxy_says_to_whom_has_the_credential_which_sandbox_it_is_for() -> None:
    async with proxied(echo) as to:
        answer = await to.ask(f"GET http://{SELF}/ HTTP/1.1\r\nHost: {SELF}\r\n{credential()}\r\n")
        assert status(answer) == 200
        assert answer.endswith(b"\r\n\r\na")


async def test_removed_sandbox_has_no_credential() -> None:
    async with site(echo) as at:
        listener = socket.create_server((HOST, 0))
        proxy = ConnectProxy(listener, at.network.shared)
        proxy.add(PASSWORD, at.network)
        to = ProxySite(at, listener.getsockname())
        asked = f"GET http://{SELF}/ HTTP/1.1\r\nHost: {SELF}\r\n{credential()}\r\n"
        assert status(await to.ask(asked)) == 200
        proxy.remove("a")
        assert status(await to.ask(asked)) == 407
        await proxy.aclose()


# --- newcomers


async def test_newcomer_that_is_silent_is_closed() -> None:
    async with proxied(echo, times=Times(first=0.05)) as to:
        assert await to.ask(b"") == b""
        assert await to.ask(b"CONNECT ") == b""


async def test_oldest_newcomer_goes_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_proxy, "NEWCOMERS", 3)
    async with proxied(echo, rules=RAW) as to:
        silent = [await to.connect() for _ in range(4)]
        assert await asyncio.wait_for(silent[0][0].read(), 60) == b""
        reader, writer = await to.tunnel()
        writer.write(b"x")
        assert await asyncio.wait_for(reader.readexactly(1), 60) == b"x"
        assert await asyncio.wait_for(silent[1][0].read(), 60) == b""
        assert not silent[3][0].at_eof()


async def test_head_that_never_ends_is_refused_when_it_is_too_long() -> None:
    async with proxied(echo) as to:
        reader, writer = await to.connect()
        writer.write(b"GET http://x/ HTTP/1.1\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"A: " + b"a" * 1000 + b"\r\n")
                await writer.drain()
            answer = await asyncio.wait_for(reader.read(), 60)
        assert answer == b"" or status(answer) == 400


# --- what for


@pytest.mark.parametrize(
    "line",
    [
        "GET / HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        f"GET https://{NAME}/ HTTP/1.1",
        f"GET ftp://{NAME}/ HTTP/1.1",
        f"GET http:/{NAME}/ HTTP/1.1",
        "GET http:/// HTTP/1.1",
        f"GET http://user@{NAME}/ HTTP/1.1",
        f"GET http://{NAME}:0/ HTTP/1.1",
        f"GET http://{NAME}:70000/ HTTP/1.1",
        f"CONNECT {NAME} HTTP/1.1",
        f"CONNECT {NAME}: HTTP/1.1",
        f"CONNECT http://{NAME}:443/ HTTP/1.1",
        f"CONNECT {NAME}:443/path HTTP/1.1",
        f"CONNECT a@{NAME}:443 HTTP/1.1",
        "CONNECT 127.1:443 HTTP/1.1",
        "CONNECT 0x7f000001:443 HTTP/1.1",
        "CONNECT -:443 HTTP/1.1",
        f"CONNECT {NAME}:443 HTTP/1.1\r\nContent-Length: 5",
        f"CONNECT {NAME}:443 HTTP/1.1\r\nTransfer-Encoding: chunked",
    ],
)
async def test_what_a_proxy_cannot_do_is_refused_and_told(line: str) -> None:
    async with proxied(echo, rules=RAW) as to:
        answer = await to.ask(f"{line}\r\nHost: {NAME}\r\n{credential()}\r\n")
        assert (status(answer), reason(answer)) == (400, "proxy")
        event = await to.at.gateway.event()
        assert (event["kind"], event["verdict"], event["reason"]) == ("request", "refused", "proxy")


async def test_what_is_not_http_is_refused() -> None:
    async with proxied(echo, rules=RAW) as to:
        assert status(await to.ask(client_hello(NAME))) == 400
        assert status(await to.ask(b"CONNECT x:1 HTTP/1.1\r\nA : b\r\n\r\n")) == 400


# --- tunnels


async def test_tunnel_passes_tls_with_the_name_of_its_host_unread() -> None:
    hello = client_hello(NAME)
    async with proxied(echo) as to:
        reader, writer = await to.tunnel(to.host.upper().replace(":", ".:"))
        writer.write(hello + b"more")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 60) == hello + b"more"
        event = await to.at.gateway.event()
        assert (event["kind"], event["verdict"], event["name"], event["address"]) == (
            "connection", "allowed", NAME, HOST,
        )  # fmt: skip
        assert (event["bytes_sent"], event["bytes_received"]) == (len(hello) + 4, len(hello) + 4)
        assert event["port"] == to.at.port


async def test_bytes_that_come_with_the_request_are_the_first_of_the_tunnel() -> None:
    hello = client_hello(NAME)
    async with proxied(echo) as to:
        request = connect(to.host).encode()
        assert await to.ask(request + hello, ends=True) == ESTABLISHED + hello
    async with proxied(echo, rules=RAW) as to:
        request = connect(to.host).encode()
        assert await to.ask(request + b"raw bytes", ends=True) == ESTABLISHED + b"raw bytes"


@pytest.mark.parametrize(
    ("first", "told"),
    [(client_hello("other.example.org"), "tls_name"), (b"\x01\x02", "protocol"), (client_hello(None), "tls_name")],
)
async def test_tunnel_is_cut_where_its_first_bytes_do_not_name_its_host(first: bytes, told: str) -> None:
    async with proxied(echo) as to:
        reader, writer = await to.tunnel()
        writer.write(first)
        with contextlib.suppress(ConnectionResetError):
            answer = await asyncio.wait_for(reader.read(), 60)
            assert first not in answer
        event = await to.at.gateway.event()
        assert (event["verdict"], event["reason"]) == ("refused", told)
        assert to.at.dns.asked.total() == 0


async def test_plain_http_in_a_tunnel_must_name_its_host() -> None:
    host = Host()
    async with proxied(host.serve) as to:
        reader, writer = await to.tunnel()
        writer.write(f"GET /x HTTP/1.1\r\nHost: {to.host}\r\n\r\n".encode())
        assert status(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)) == 200
        await reader.readexactly(2)
        writer.write(b"GET /x HTTP/1.1\r\nHost: other.example.org\r\n\r\n")
        assert status(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)) == 403
        assert len(host.requests) == 1


@pytest.mark.parametrize(
    ("asked", "name", "address"),
    [
        ("other.example.org", "other.example.org", None),
        (f"x.{NAME}", f"x.{NAME}", None),
        ("localhost", "localhost", None),
        ("127.0.0.1", None, "127.0.0.1"),
        ("[::1]", None, "::1"),
        ("[::ffff:169.254.169.254]", None, "169.254.169.254"),
    ],
)
async def test_tunnel_that_no_rule_permits_is_refused_before_anything_is_asked(
    asked: str, name: str | None, address: str | None
) -> None:
    host = Host()
    async with proxied(host.serve) as to:
        answer = await to.ask(connect(f"{asked}:{to.at.port}"))
        assert (status(answer), reason(answer)) == (403, "rule")
        event = await to.at.gateway.event()
        assert (event["kind"], event["verdict"], event["reason"]) == ("connection", "refused", "rule")
        assert (event["name"], event["address"], event["port"]) == (name, address, to.at.port)
        assert (host.read, to.at.dns.asked.total()) == ([], 0)


async def test_tunnel_to_another_port_than_the_rules_is_refused() -> None:
    async with proxied(echo) as to:
        answer = await to.ask(connect(f"{NAME}:1"))
        assert (status(answer), reason(answer)) == (403, "rule")


async def test_raw_tunnel_is_answered_when_its_host_was_dialled() -> None:
    async with proxied(echo, rules=RAW, permit_nets=()) as to:
        answer = await to.ask(connect(to.host))
        assert (status(answer), reason(answer)) == (403, "own")
        event = await to.at.gateway.event()
        assert (event["verdict"], event["reason"], event["address"]) == ("refused", "own", HOST)
    async with proxied(echo, rules=RAW) as to:
        to.at.dns.addresses.clear()
        answer = await to.ask(connect(to.host))
        assert (status(answer), reason(answer)) == (502, "not_found")


async def test_tunnel_to_an_address_needs_a_rule_of_its_network() -> None:
    async with proxied(echo, rules=[{"host": "127.0.0.0/8", "raw": True}]) as to:
        reader, writer = await to.tunnel(f"127.0.0.1:{to.at.port}")
        writer.write(b"x")
        assert await asyncio.wait_for(reader.readexactly(1), 60) == b"x"


# --- requests with a whole URL


async def test_plain_request_reaches_its_host_without_what_is_for_the_proxy() -> None:
    host = Host()
    async with proxied(host.serve) as to:
        head = f"POST http://{to.host}/a?b HTTP/1.1\r\nHost: {to.host}\r\nProxy-Connection: keep-alive\r\n"
        answer = await to.ask(f"{head}{credential()}Content-Length: 3\r\n\r\nabc")
        assert status(answer) == 200
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(b"ok")
        assert (host.requests[0].target, host.bodies) == (b"/a?b", [b"abc"])
        assert {name for name, _ in host.requests[0].headers} == {b"host", b"content-length"}
        event = await to.at.gateway.event()
        assert (event["kind"], event["verdict"], event["name"]) == ("connection", "allowed", NAME)


async def test_raw_rule_does_not_show_the_host_what_is_for_the_proxy() -> None:
    host = Host()
    async with proxied(host.serve, rules=RAW) as to:
        await to.ask(f"GET http://{to.host}/ HTTP/1.1\r\nHost: {to.host}\r\n{credential()}\r\n")
        assert b"authorization" not in host.read[0].lower()


async def test_second_request_on_a_connection_is_not_read() -> None:
    host = Host()
    async with proxied(host.serve) as to:
        one = f"GET http://{to.host}/ HTTP/1.1\r\nHost: {to.host}\r\n{credential()}\r\n"
        answer = await to.ask(one * 2)
        assert (answer.count(b"HTTP/1.1 200"), len(host.requests)) == (1, 1)


@pytest.mark.parametrize(
    ("target", "host_header", "told"),
    [
        ("http://other.example.org:{port}/", "other.example.org:{port}", "rule"),
        (f"http://{NAME}/", NAME, "rule"),
        (f"http://{NAME}:{{port}}/", "other.example.org", "http_host"),
        ("http://127.0.0.1:{port}/", "127.0.0.1:{port}", "rule"),
    ],
)
async def test_plain_request_that_no_rule_permits_is_refused(target: str, host_header: str, told: str) -> None:
    host = Host()
    async with proxied(host.serve) as to:
        port = to.at.port
        line = f"GET {target.format(port=port)} HTTP/1.1\r\nHost: {host_header.format(port=port)}\r\n"
        answer = await to.ask(f"{line}{credential()}\r\n")
        assert (status(answer), reason(answer)) == (403, told)
        assert (host.read, to.at.dns.asked.total()) == ([], 0)
        event = await to.at.gateway.event()
        assert (event["verdict"], event["reason"]) == ("refused", told)
        assert (event["kind"], len(to.at.gateway.events)) == ("request", 1)
        assert event["bytes_sent"] > len(line)


# --- bounds


@pytest.mark.parametrize("told", ["connections_per_sandbox", "connections_per_second"])
async def test_connection_beyond_a_bound_is_refused_and_told(told: str) -> None:
    async with proxied(echo, rules=RAW, bounds={told: 1}) as to:
        await to.tunnel()
        answer = await to.ask(connect(to.host))
        assert (status(answer), reason(answer)) == (403, told)
        event = await to.at.gateway.event()
        assert (event["kind"], event["name"], event["port"]) == ("connection", NAME, to.at.port)


async def test_newcomer_is_reset_when_no_descriptors_are_left_and_others_go_on() -> None:
    async with proxied(echo, rules=RAW) as to:
        reader, writer = await to.tunnel()
        with socket.socket() as newcomer:
            newcomer.setblocking(False)
            with no_more_descriptors():
                loop = asyncio.get_running_loop()
                with pytest.raises(ConnectionResetError):
                    await loop.sock_connect(newcomer, to.address)
                    await asyncio.wait_for(loop.sock_recv(newcomer, 1), 60)
                writer.write(b"x")
                assert await asyncio.wait_for(reader.readexactly(1), 60) == b"x"
        await to.tunnel()
