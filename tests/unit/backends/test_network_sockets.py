"""Sockets that are not those of the plan's ports are not taken, and none of them stays open."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from app.backends.process import network_sockets
from app.backends.process.network_sockets import NetworkSockets


def listener() -> tuple[int, int]:
    """Port and descriptor."""
    made = socket.create_server(("127.0.0.1", 0))
    return made.getsockname()[1], made.detach()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        monkeypatch.setattr(network_sockets, "RESOLVER_ADDRESS", made.getsockname())
        yield made


def is_open(descriptor: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{descriptor}")  # noqa: PTH110 - of a descriptor


def test_sockets_are_known_by_their_ports_until_they_are_closed(resolver: socket.socket) -> None:
    names, (first, one), (second, other) = os.dup(resolver.fileno()), listener(), listener()
    sockets = NetworkSockets([names, one, other], [first, second])
    assert (sockets.resolver, dict(sockets.listeners)) == (names, {first: one, second: other})
    assert sockets.descriptors == (names, one, other)
    sockets.close()
    sockets.close()
    assert not any(map(is_open, (names, one, other)))
    assert not sockets.descriptors


@pytest.mark.parametrize(
    "kinds", ["", "resolver", "right", "right resolver", "resolver file", "resolver wrong", "resolver right right"]
)
def test_sockets_of_other_ports_or_kinds_are_closed_and_refused(resolver: socket.socket, kinds: str) -> None:
    port, right = listener()
    make = {
        "resolver": lambda: os.dup(resolver.fileno()),
        "right": lambda: os.dup(right),
        "wrong": lambda: listener()[1],
        "file": lambda: os.open(os.devnull, os.O_RDONLY),
    }
    made = [make[kind]() for kind in kinds.split()]
    with pytest.raises(ValueError, match="the sockets of its network"):
        NetworkSockets(made, [port])
    os.close(right)
    assert not any(map(is_open, made))
