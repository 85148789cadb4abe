"""Other rules for a network that is open: what goes on, what is cut, and what is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import dns.rcode
import pytest

from app.core.network_rules import NetworkRule, parse_rule
from tests.unit.core.support import until
from tests.unit.egress.support import GIVEN, NAME, Site, echo, site
from tests.unit.egress.test_resolver import Program, address_in
from tests.unit.egress.test_tls import client_hello

RAW = {"host": NAME, "raw": True}
OTHER = {"host": "other.example.org"}
GET = f"GET / HTTP/1.1\r\nHost: {NAME}:%d\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request, but `/slow` never."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            if b"/slow" not in head:
                writer.write(OK)
    writer.close()


async def change(at: Site, *rules: dict[str, Any]) -> None:
    """Returns when what is not permitted is cut."""
    await at.network.change([rule(at, each) for each in rules], [])


def rule(at: Site, value: dict[str, Any]) -> NetworkRule:
    return parse_rule({"ports": [at.port], **value})


async def is_cut(at: Site, reader: asyncio.StreamReader) -> None:
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 60)
    event = await at.gateway.event()
    assert (event["kind"], event["verdict"], event["reason"]) == ("connection", "refused", "changed")


async def raw(at: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await at.connect()
    writer.write(b"\0")
    assert await reader.readexactly(1) == b"\0"
    return reader, writer


async def tls(at: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    hello = client_hello(NAME)
    reader, writer = await at.connect()
    writer.write(hello)
    assert await reader.readexactly(len(hello)) == hello
    return reader, writer


async def http(at: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await at.connect()
    writer.write(GET.encode() % at.port)
    assert await reader.readexactly(len(OK)) == OK
    return reader, writer


@pytest.mark.parametrize(("kind", "before"), [("raw", RAW), ("tls", {"host": NAME}), ("http", {"host": NAME})])
@pytest.mark.parametrize("after", [[], [OTHER]], ids=["nothing", "other"])
async def test_connection_that_is_no_longer_permitted_is_cut(
    kind: str, before: dict[str, Any], after: list[dict[str, Any]]
) -> None:
    async with site(answer if kind == "http" else echo, rules=[before]) as at:
        reader, _ = await {"raw": raw, "tls": tls, "http": http}[kind](at)
        await change(at, *after)
        await is_cut(at, reader)
        assert at.network._connections == {}


@pytest.mark.parametrize(
    ("before", "after"),
    [(RAW, [OTHER, RAW]), ({"host": NAME}, [{"host": "*.example.org"}]), ({"host": NAME}, [RAW])],
    ids=["raw", "tls", "tls to raw"],
)
async def test_connection_that_is_still_permitted_goes_on(before: dict[str, Any], after: list[dict[str, Any]]) -> None:
    async with site(echo, rules=[before]) as at:
        reader, writer = await (raw if before is RAW else tls)(at)
        await change(at, *after)
        writer.write(b"more")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 60) == b"more"
        assert (await at.gateway.event())["verdict"] == "allowed"


async def test_bytes_that_passed_unread_need_a_rule_that_lets_them() -> None:
    async with site(echo, rules=[RAW]) as at:
        reader, _ = await raw(at)
        await change(at, {"host": NAME})
        await is_cut(at, reader)
    async with site(echo) as at:
        reader, _ = await tls(at)
        await change(at, {"host": NAME, "http": [{"methods": ["GET"]}]})
        await is_cut(at, reader)


async def test_request_that_is_under_way_is_cut_with_its_connection() -> None:
    async with site(answer) as at:
        reader, writer = await http(at)
        writer.write(GET.replace("/ ", "/slow ").encode() % at.port)
        await change(at)
        await is_cut(at, reader)


async def test_connection_that_is_cut_stays_so_when_the_next_rules_permit_it() -> None:
    async with site(echo, rules=[RAW]) as at:
        reader, _ = await raw(at)
        changes = [at.network.change(rules, []) for rules in ([], [rule(at, RAW)])]
        (task,) = at.network._connections
        assert task.cancelling() == 1
        await asyncio.gather(*changes)
        await is_cut(at, reader)


SLOW = GET.replace("/ ", "/slow ").encode()


async def test_next_request_is_judged_by_the_new_rules() -> None:
    async with site(answer) as at:
        reader, writer = await http(at)
        (connection,) = at.network._connections.values()
        await until(lambda: connection._read is not None and connection._read._current is None)
        await change(at, {"host": NAME, "http": [{"paths": ["/other"]}]})
        writer.write(GET.encode() % at.port)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 403")
        await reader.readuntil(b"}")
        await change(at, {"host": NAME})
        writer.write(GET.encode() % at.port)
        assert await reader.readexactly(len(OK)) == OK


@pytest.mark.parametrize("path", ["/slow", "/other"])
async def test_request_that_is_under_way_is_cut_when_its_path_is_no_longer_permitted(path: str) -> None:
    async with site(answer) as at:
        reader, writer = await at.connect()
        writer.write(SLOW % at.port)
        await until(lambda: bool(at.dns.asked))
        await change(at, {"host": NAME, "http": [{"paths": [path]}]})
        if path == "/slow":
            assert len(at.network._connections) == 1
        else:
            await is_cut(at, reader)


async def test_client_that_has_said_nothing_yet_is_judged_by_the_new_rules() -> None:
    async with site(echo, rules=[{"host": NAME}, RAW | {"host": "a.example"}]) as at:
        silent, gone = await at.connect(), await at.connect()
        await until(lambda: len(at.network._connections) == 2)
        await change(at, RAW)
        silent[1].write(client_hello(NAME))
        assert (await asyncio.wait_for(silent[0].read(5), 60))[:2] == client_hello(NAME)[:2]
        await change(at)
        await is_cut(at, gone[0])


async def test_connection_that_waits_in_the_backlog_is_judged_by_the_new_rules() -> None:
    async with site(echo) as at:
        reader, writer = await at.connect()  # nothing has run in between
        await change(at, {"host": NAME, "ports": [at.port]}, OTHER)
        writer.write(hello := client_hello(NAME))
        assert await asyncio.wait_for(reader.readexactly(len(hello)), 60) == hello


async def test_port_that_no_rule_has_is_refused_and_a_new_listener_serves() -> None:
    async with site(echo) as at:
        await change(at, {"host": NAME, "ports": [1]})
        with pytest.raises(ConnectionRefusedError):
            await at.connect()
        again = socket.create_server((GIVEN, at.port))
        await at.network.change([rule(at, {"host": NAME})], [again])
        assert await at.ask(hello := client_hello(NAME)) == hello


async def test_listener_that_was_stopped_is_left_alone_until_its_port_is_dropped() -> None:
    """The launcher stops it before the change comes. epoll would tell of it for ever."""
    async with site(echo) as at:
        (listener,) = at.network._listeners
        listener.shutdown(socket.SHUT_RDWR)
        await until(lambda: listener.fileno() not in at.network.turns._readers)
        await change(at)


async def test_name_keeps_its_address_and_does_not_exist_while_no_rule_permits_it() -> None:
    async with site(echo, rules=[{"host": "*.example.org"}]) as at:
        program = await Program.of(at)
        first, again = [address_in(await program.ask("a.example.org")) for _ in range(2)]  # the second is remembered
        assert again == first
        await change(at, {"host": "b.example.org"})
        for _ in range(2):
            assert (await program.ask("a.example.org")).rcode() == dns.rcode.NXDOMAIN
        assert (await at.gateway.event())["reason"] == "name"
        assert address_in(await program.ask("b.example.org")) != first
        await change(at, {"host": "a.example.org"})
        assert address_in(await program.ask("a.example.org")) == first
