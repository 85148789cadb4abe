"""Which addresses of a name are dialled, and which are not, whatever the name's owner answers."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from app.egress.dialling import OwnAddresses, endpoint
from app.egress.reasons import FAILURES
from app.egress.times import Times
from tests.unit.egress.support import GIVEN, HOST, NAME, echo, site

RAW = [{"host": NAME, "raw": True}]


async def refusal(addresses: list[str], **options: Any) -> tuple[str, str | None]:
    """(reason, address) of a connection to a name with these addresses."""
    async with site(echo, rules=RAW, **options) as at:
        at.dns.addresses[NAME] = addresses
        with pytest.raises(ConnectionResetError):
            await at.ask(b"x")
        event = await at.gateway.event()
        assert event["verdict"] == ("failed" if event["reason"] in FAILURES else "refused")
        return event["reason"], event["address"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "own"),
        ("169.254.169.254", "metadata"),
        ("10.1.2.3", "private"),
        ("100.64.0.1", "shared"),
        ("0.0.0.0", "own"),
        ("198.18.0.1", "benchmarking"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("::1", "own"),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::a00:1", "private"),
        ("2002:a00:1::", "private"),
        ("fd00:ec2::254", "metadata"),
        ("fe80::1", "link_local"),
    ],
)
async def test_name_that_leads_to_a_forbidden_address_is_refused(address: str, reason: str) -> None:
    told, dialled = await refusal([address], permit_nets=())
    assert told == reason or {told, reason} == {"own", "loopback"} or (told, address) == ("unspecified", "0.0.0.0")
    assert dialled is not None
    assert ip_address(dialled) == ip_address(address)


async def test_control_local_address_is_dialled_where_the_operator_permits_its_network() -> None:
    async with site(echo, rules=RAW) as at:
        assert await at.ask(b"x") == b"x"
        assert (await at.gateway.event())["address"] == HOST


@pytest.mark.parametrize("addresses", [[HOST, "10.0.0.1"], ["10.0.0.1", HOST], [HOST, "fe80::1"]])
async def test_one_forbidden_address_refuses_the_whole_answer(addresses: list[str]) -> None:
    assert (await refusal(addresses))[0] in ("private", "link_local")


async def test_address_that_was_judged_is_the_one_that_is_dialled() -> None:
    """Each connection asks once for each kind of address, so a second answer, to rebind the name, is never heard."""
    async with site(echo, rules=RAW) as at:
        assert await at.ask(b"x") == b"x"
        assert at.dns.asked == {NAME: 2}
        at.dns.addresses[NAME] = ["10.0.0.1"]
        with pytest.raises(ConnectionResetError):
            await at.ask(b"x")
        assert at.dns.asked == {NAME: 4}


@pytest.mark.parametrize("listens", ["127.0.0.1:{}", "0.0.0.0:{}", "[::1]:{}"])
async def test_service_itself_is_refused_in_a_permitted_network(listens: str) -> None:
    assert await refusal([HOST], service=lambda port: [listens.format(port)]) == ("service", HOST)


async def test_next_address_is_tried_when_one_refuses() -> None:
    async with site(echo, rules=RAW) as at:
        at.dns.addresses[NAME] = ["127.0.0.9", "127.0.0.10", HOST]
        assert await at.ask(b"x") == b"x"
        assert (await at.gateway.event())["address"] == HOST


async def test_name_without_an_address_is_told() -> None:
    assert await refusal([]) == ("not_found", None)


def test_failure_of_a_host_is_no_refusal() -> None:
    """Nothing that a rule could change, and all of it the host's or its name server's."""
    assert {str(reason) for reason in FAILURES} == {
        *("not_found", "resolver", "unreachable", "timeout", "upstream", "upstream_tls")
    }


async def test_host_that_refuses_is_told() -> None:
    assert await refusal(["127.0.0.9"]) == ("unreachable", "127.0.0.9")


async def test_dns_server_that_does_not_answer_is_told() -> None:
    async with site(echo, rules=RAW, times=Times(resolve=0.05)) as at:
        at.dns.is_silent = True
        with pytest.raises(ConnectionResetError):
            await at.ask(b"x")
        assert (await at.gateway.event())["reason"] == "resolver"


async def test_address_that_does_not_answer_is_left_for_the_next_in_time() -> None:
    """Its backlog is full, so the kernel drops what asks for more."""
    async with site(echo, rules=RAW, times=Times(address=0.05)) as at:
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(socket.socket())
            full.bind(("127.0.0.8", at.port))
            full.listen(0)
            stack.enter_context(socket.create_connection(("127.0.0.8", at.port)))
            at.dns.addresses[NAME] = ["127.0.0.8", HOST]
            assert await at.ask(b"x") == b"x"
            at.dns.addresses[NAME] = ["127.0.0.8"]
            at.network.shared.dialler._times = Times(connect=0.05)
            with pytest.raises(ConnectionResetError):
                await at.ask(b"x")
            assert (await at.gateway.event(1))["reason"] == "timeout"


async def test_literal_address_needs_the_operators_permit_beside_a_rule() -> None:
    rules = [{"host": "127.0.0.0/8", "raw": True}]
    async with site(echo, rules=rules, names={"x": "127.99.0.1"}, permit_nets=()) as at:
        with pytest.raises(ConnectionResetError):
            await at.ask(b"x")
        event = await at.gateway.event()
        assert (event["name"], event["address"], event["reason"]) == (None, GIVEN, "own")


def test_own_addresses_are_found_without_a_list() -> None:
    own = OwnAddresses()
    assert endpoint("127.0.0.1:1")[0] in own
    assert endpoint("192.0.2.1:1")[0] not in own


def test_networks_that_the_operator_calls_own_are_own() -> None:
    own = OwnAddresses(["198.51.100.7", "2001:db8:1::/48"])
    assert endpoint("198.51.100.7:1")[0] in own
    assert endpoint("[2001:db8:1::7]:1")[0] in own
    assert endpoint("198.51.100.8:1")[0] not in own
    assert endpoint("127.0.0.1:1")[0] in own
