"""What a copy that was made ahead has said is heard by the one that it is for."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from app.launcher.birth import Copy
from app.launcher.protocol import NETWORK_UP, STEP_FAILED, Writer


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_that_the_network_is_up_is_taken_once(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    copy = Copy(1, -1, ours, 1)
    assert not copy.has_network()
    theirs.send(bytes((NETWORK_UP,)))
    assert copy.has_network()
    assert not copy.has_network()


def test_a_step_that_failed_is_left_to_be_read(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    said = bytes(Writer(STEP_FAILED).text("enter_network_namespace").u32(1).text("no").data)
    theirs.send(said)
    assert not Copy(1, -1, ours, 1).has_network()
    assert ours.recv(4096) == said
