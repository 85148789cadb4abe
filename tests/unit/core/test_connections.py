"""Whose the connections are: each client has its share, and its own idle ones make room for its next."""

from __future__ import annotations

import pytest

from app.core.budget import Budget
from app.core.connections import ConnectionEntry, Connections, network_of
from app.core.errors import CapacityExceeded


class Wire:
    def __init__(self, *, idle: bool = True) -> None:
        self.idle = idle
        self.open = True

    def give_up(self) -> None:
        self.open = False


def seated(
    connections: Connections, budget: Budget, holder: str, *, idle: bool = False
) -> tuple[Wire, ConnectionEntry]:
    wire = Wire(idle=idle)
    entry = connections.enter(wire, "192.0.2.1")
    entry.belongs_to(budget, holder)
    return wire, entry


def test_too_many_newcomers_cost_the_first_of_them() -> None:
    connections = Connections(newcomers=2)
    wires = [Wire(), Wire(idle=False), Wire(), Wire()]
    entries = [connections.enter(wire, "192.0.2.1") for wire in wires]
    assert [wire.open for wire in wires] == [False, True, False, True]
    entries[1].belongs_to(Budget("connections", 8, "client"), "a")
    connections.enter(last := Wire(), "192.0.2.1")
    assert wires[3].open
    assert last.open, "who has made itself known is no newcomer"


@pytest.mark.parametrize(
    ("many", "one"),
    [("192.0.2.1", "192.0.2.2"), ("2001:db8::{}", "2001:db8:0:1::1")],
    ids=["IPv4", "a network of IPv6"],
)
def test_many_newcomers_of_one_address_cost_none_of_another(many: str, one: str) -> None:
    connections = Connections(newcomers=4)
    connections.enter(quiet := Wire(), one)
    wires = [Wire() for _ in range(20)]
    for number, wire in enumerate(wires):
        connections.enter(wire, many.format(number))
    assert quiet.open
    assert [wire.open for wire in wires] == [False] * 17 + [True] * 3
    connections.enter(another := Wire(), one)
    assert [quiet.open, another.open] == [True, True]


def test_a_client_with_no_idle_connection_is_refused_and_another_is_not() -> None:
    connections, budget = Connections(8), Budget("connections", 8, "client")
    entries = [seated(connections, budget, "a")[1] for _ in range(4)]
    with pytest.raises(CapacityExceeded, match="connections"):
        seated(connections, budget, "a")
    assert seated(connections, budget, "b")[0].open
    entries[0].leave()
    entries[0].leave()
    assert seated(connections, budget, "a")[0].open


def test_a_client_makes_room_with_what_has_been_idle_for_the_longest() -> None:
    connections, budget = Connections(8), Budget("connections", 6, "client")
    other, _ = seated(connections, budget, "b", idle=True)
    first, entry = seated(connections, budget, "a", idle=True)
    second, _ = seated(connections, budget, "a", idle=True)
    entry.belongs_to(budget, "a")  # its next request
    third, _ = seated(connections, budget, "a", idle=True)
    fourth, _ = seated(connections, budget, "a", idle=True)
    assert [wire.open for wire in (first, second, third, fourth, other)] == [True, False, True, True, True]


def test_a_connection_that_shows_a_key_counts_for_the_key_alone() -> None:
    connections = Connections(8)
    strangers, known = Budget("strangers", 4, "client"), Budget("connections", 4, "client")
    _, entry = seated(connections, strangers, "192.0.2.1")
    entry.belongs_to(known, "a")
    assert (strangers.used, known.used) == (0, 1)
    entry.leave()
    assert (strangers.used, known.used) == (0, 0)


def test_addresses_of_ipv4_in_ipv6_are_networks_of_their_own() -> None:
    """As a socket that listens on `::` tells them."""
    found = [network_of(address) for address in ("::ffff:192.0.2.1", "192.0.2.1", "fe80::1%eth0", "2001:db8::2")]
    assert found == ["192.0.2.1", "192.0.2.1", "fe80::/64", "2001:db8::/64"]


def test_who_has_no_connection_gets_the_place_of_an_idle_one_of_whoever_has_the_most() -> None:
    connections, budget = Connections(newcomers=64), Budget("connections", 4, "client")
    busy, (idle, _) = seated(connections, budget, "a")[0], seated(connections, budget, "a", idle=True)
    other, last = seated(connections, budget, "b", idle=True)[0], seated(connections, budget, "c", idle=True)[0]
    assert budget.used == 4, "nothing is left"
    seated(connections, budget, "d")
    assert [wire.open for wire in (busy, idle, other, last)] == [True, False, True, True]
    assert (budget.held("a"), budget.held("d"), budget.used) == (1, 1, 4)
    with pytest.raises(CapacityExceeded):
        seated(connections, budget, "d")  # who has one takes nothing from others
    assert [wire.open for wire in (busy, other, last)] == [True, True, True]


def test_where_nobody_has_an_idle_connection_who_has_none_is_refused() -> None:
    connections, budget = Connections(newcomers=64), Budget("connections", 2, "client")
    wires = [seated(connections, budget, holder)[0] for holder in "ab"]
    with pytest.raises(CapacityExceeded):
        seated(connections, budget, "c")
    assert all(wire.open for wire in wires)
