"""What a copy that was made ahead has said is heard by the one that it is for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import cast

import pytest

from app.launcher.birth import Copy, Nursery
from app.launcher.connection import Connection
from app.launcher.protocol import NETWORK_UP, STEP_FAILED, Writer


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_nothing_is_heard_until_something_is_said(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    copy = Copy(1, -1, ours, 1)
    assert copy.first_word() is None
    theirs.send(bytes((NETWORK_UP,)))
    assert copy.first_word() == NETWORK_UP
    assert copy.first_word() is None


def test_a_step_that_failed_and_an_end_without_a_word_are_told_apart_from_silence(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.send(bytes(Writer(STEP_FAILED).text("enter_network_namespace").u32(1).text("no").data))
    copy = Copy(1, -1, ours, 1)
    assert copy.first_word() == STEP_FAILED
    theirs.close()
    assert copy.first_word() not in (None, NETWORK_UP)


def test_a_copy_ahead_that_fails_is_given_up_and_not_asked_again() -> None:
    """Else the launcher would wake 500 times a second for as long as nobody creates anything."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    nursery = Nursery.__new__(Nursery)
    nursery._tried, nursery._uids = True, []
    nursery._ahead = Copy(pid, os.pidfd_open(pid), ours, 7)
    theirs.send(bytes(Writer(STEP_FAILED).text("step").u32(1).text("no").data))
    theirs.close()
    assert not nursery.prepared
    assert nursery.prepare(cast(Connection, None)) is None
    assert nursery.prepared
    assert nursery._uids == [7]
    assert ours.fileno() < 0
