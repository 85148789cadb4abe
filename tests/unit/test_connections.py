"""Whose the connections are: each client has its share, and its own idle ones make room for its next."""

from __future__ import annotations

import pytest

from app.connections import Connections, Place
from app.core.budget import Budget
from app.core.errors import CapacityExceeded


class Wire:
    def __init__(self, *, idle: bool = True) -> None:
        self.idle = idle
        self.open = True

    def give_up(self) -> None:
        self.open = False


def seated(connections: Connections, budget: Budget, holder: str, *, idle: bool = False) -> tuple[Wire, Place]:
    wire = Wire(idle=idle)
    place = connections.enter(wire)
    place.belongs_to(budget, holder)
    return wire, place


def test_too_many_newcomers_cost_the_first_of_them() -> None:
    connections = Connections(newcomers=2)
    wires = [Wire(), Wire(idle=False), Wire(), Wire()]
    places = [connections.enter(wire) for wire in wires]
    assert [wire.open for wire in wires] == [False, True, False, True]
    places[1].belongs_to(Budget("connections", 8, "client"), "a")
    connections.enter(last := Wire())
    assert wires[3].open
    assert last.open, "who has made itself known is no newcomer"


def test_a_client_with_no_idle_connection_is_refused_and_another_is_not() -> None:
    connections, budget = Connections(), Budget("connections", 8, "client")
    places = [seated(connections, budget, "a")[1] for _ in range(4)]
    with pytest.raises(CapacityExceeded, match="connections"):
        seated(connections, budget, "a")
    assert seated(connections, budget, "b")[0].open
    places[0].leave()
    places[0].leave()
    assert seated(connections, budget, "a")[0].open


def test_a_client_makes_room_with_what_has_been_idle_for_the_longest() -> None:
    connections, budget = Connections(), Budget("connections", 6, "client")
    other, _ = seated(connections, budget, "b", idle=True)
    first, place = seated(connections, budget, "a", idle=True)
    second, _ = seated(connections, budget, "a", idle=True)
    place.belongs_to(budget, "a")  # its next request
    third, _ = seated(connections, budget, "a", idle=True)
    fourth, _ = seated(connections, budget, "a", idle=True)
    assert [wire.open for wire in (first, second, third, fourth, other)] == [True, False, True, True, True]


def test_a_connection_that_shows_a_key_counts_for_the_key_alone() -> None:
    connections = Connections()
    strangers, known = Budget("strangers", 4, "client"), Budget("connections", 4, "client")
    _, place = seated(connections, strangers, "192.0.2.1")
    place.belongs_to(known, "a")
    assert (strangers.used, known.used) == (0, 1)
    place.leave()
    assert (strangers.used, known.used) == (0, 0)
