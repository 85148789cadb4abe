"""Addresses that are never dialled: each kind, each spelling, and what the operator may permit."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.addresses import REASONS, forbidden, forbidden_net

REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "127.0.0.1": "loopback",
    "127.255.255.255": "loopback",
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "169.254.1.1": "link_local",
    "169.254.169.254": "metadata",
    "169.254.170.2": "metadata",
    "168.63.129.16": "metadata",
    "100.100.100.200": "metadata",
    "192.0.0.192": "metadata",
    "100.64.0.1": "shared",
    "100.127.255.255": "shared",
    "198.18.0.1": "benchmarking",
    "198.19.255.255": "benchmarking",
    "192.0.0.1": "reserved",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "broadcast",
    "::": "unspecified",
    "::1": "loopback",
    "fe80::1": "link_local",
    "fc00::1": "private",
    "fdff::1": "private",
    "fec0::1": "private",
    "fd00:ec2::254": "metadata",
    "fd20:ce::254": "metadata",
    "ff02::1": "multicast",
    "100::1": "reserved",
    "4000::1": "reserved",
    "64:ff9b:1::1": "reserved",
    "2001:2::1": "benchmarking",
}
PUBLIC = (
    "8.8.8.8",
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.1",
    "172.15.0.1",
    "172.32.0.1",
    "100.63.0.1",
    "100.128.0.1",
)
PUBLIC_6 = ("2001:db8::1", "2606:2800::1", "3fff::1", "64:ff9b::808:808")


def teredo(server: str, client: str) -> str:
    flipped = int(ipaddress.IPv4Address(client)) ^ 0xFFFFFFFF
    return str(ipaddress.IPv6Address((0x20010000 << 96) | (int(ipaddress.IPv4Address(server)) << 64) | flipped))


def six_to_four(inner: str) -> str:
    return str(ipaddress.IPv6Address((0x2002 << 112) | (int(ipaddress.IPv4Address(inner)) << 80) | 1))


@pytest.mark.parametrize(("address", "reason"), REFUSED.items())
def test_what_is_not_public_is_refused(address: str, reason: str) -> None:
    assert forbidden(ipaddress.ip_address(address)) == reason
    assert reason in REASONS


@pytest.mark.parametrize("address", PUBLIC + PUBLIC_6)
def test_what_is_public_may_be_reached(address: str) -> None:
    assert forbidden(ipaddress.ip_address(address)) is None


@pytest.mark.parametrize(("address", "reason"), [(a, r) for a, r in REFUSED.items() if "." in a])
def test_an_address_inside_another_one_is_judged_too(address: str, reason: str) -> None:
    spellings = [f"::ffff:{address}", f"64:ff9b::{address}", f"::ffff:0:{address}", six_to_four(address)]
    spellings += [teredo("8.8.8.8", address), teredo(address, "8.8.8.8")]
    assert {text: forbidden(ipaddress.ip_address(text)) for text in spellings} == dict.fromkeys(spellings, reason)
    assert forbidden(ipaddress.ip_address(f"::{address}")) is not None


def test_an_old_ipv4_compatible_address_is_refused_whatever_it_has_inside() -> None:
    assert forbidden(ipaddress.ip_address("::8.8.8.8")) == "reserved"
    assert forbidden(ipaddress.ip_address("::10.0.0.1")) == "private"


def test_a_permitted_network_is_permitted_as_it_is_written() -> None:
    permitted = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00:1::/32")]
    assert forbidden(ipaddress.ip_address("10.1.2.3"), permitted) is None
    assert forbidden(ipaddress.ip_address("::ffff:10.1.2.3"), permitted) is None
    assert forbidden(ipaddress.ip_address("fd00:1::1"), permitted) is None
    assert forbidden(ipaddress.ip_address("10.2.0.1"), permitted) == "private"
    assert forbidden(ipaddress.ip_address("64:ff9b::10.1.2.3"), permitted) == "private"


def test_own_addresses_are_refused_in_every_spelling_unless_permitted() -> None:
    own = {ipaddress.ip_address("203.0.113.9"), ipaddress.ip_address("2001:db8::9")}
    for text in ("203.0.113.9", "::ffff:203.0.113.9", "64:ff9b::203.0.113.9", "2001:db8::9"):
        assert forbidden(ipaddress.ip_address(text), (), own) == "own"
    assert forbidden(ipaddress.ip_address("203.0.113.9"), [ipaddress.ip_network("203.0.113.9")], own) is None


def test_a_network_is_refused_where_nothing_in_it_can_be_reached() -> None:
    permitted = [ipaddress.ip_network("10.1.0.0/16")]
    assert forbidden_net(ipaddress.ip_network("10.0.0.0/8")) == "private"
    assert forbidden_net(ipaddress.ip_network("10.0.0.0/8"), permitted) is None
    assert forbidden_net(ipaddress.ip_network("10.2.0.0/16"), permitted) == "private"
    assert forbidden_net(ipaddress.ip_network("fe80::/64"), permitted) == "link_local"
    assert forbidden_net(ipaddress.ip_network("203.0.113.0/24")) is None
    assert forbidden_net(ipaddress.ip_network("0.0.0.0/0")) is None


DOCUMENTATION = [ipaddress.IPv4Network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]


@given(st.ip_addresses(v=4))
def test_no_address_is_let_through_that_the_standard_library_calls_local(address: ipaddress.IPv4Address) -> None:
    if forbidden(address) is None:
        assert address.is_global or any(address in net for net in DOCUMENTATION)
        assert not address.is_multicast


@given(st.ip_addresses(v=6))
def test_only_ipv6_that_is_given_out_or_translated_is_let_through(address: ipaddress.IPv6Address) -> None:
    if forbidden(address) is None and address.ipv4_mapped is None:
        assert any(address in ipaddress.IPv6Network(net) for net in ("2000::/3", "64:ff9b::/96"))


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_judged_as_the_one_inside(address: ipaddress.IPv4Address) -> None:
    assert forbidden(ipaddress.IPv6Address(f"::ffff:{address}")) == forbidden(address)
