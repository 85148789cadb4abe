"""What a zygote that was made ahead has said is heard by the one that it is for."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.launcher.daemon import zygote
from app.launcher.daemon.connection import Connection
from app.launcher.daemon.cpu_allocation import CpuAllocator
from app.launcher.daemon.zygote import Spawner, SpawnError, Zygote, _last_words
from app.launcher.protocol import NETWORK_UP, STEP_FAILED, CreatePlan, Writer

PLAN = CreatePlan("one", "host", "default", 1000, 1 << 28, 1 << 26, 64, False, ["/usr"], ["/tmp"])


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_nothing_is_heard_until_something_is_said(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    zygote = Zygote(1, -1, ours, 1)
    assert zygote.first_word() is None
    theirs.send(bytes((NETWORK_UP,)))
    assert zygote.first_word() == NETWORK_UP
    assert zygote.first_word() is None


def test_a_step_that_failed_and_an_end_without_a_word_are_told_apart_from_silence(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.send(bytes(Writer(STEP_FAILED).text("enter_network_namespace").u32(1).text("no").data))
    zygote = Zygote(1, -1, ours, 1)
    assert zygote.first_word() == STEP_FAILED
    theirs.close()
    assert zygote.first_word() not in (None, NETWORK_UP)


def test_a_zygote_ahead_that_fails_is_given_up_and_not_asked_again() -> None:
    """Else the launcher would wake 500 times a second for as long as nobody creates anything."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    spawner = Spawner.__new__(Spawner)
    spawner._tried, spawner._uids = True, []
    spawner._ahead = Zygote(pid, os.pidfd_open(pid), ours, 7)
    theirs.send(bytes(Writer(STEP_FAILED).text("step").u32(1).text("no").data))
    theirs.close()
    assert not spawner.prepared
    assert spawner.prepare(cast(Connection, None)) is None
    assert spawner.prepared
    assert spawner._uids == [7]
    assert ours.fileno() < 0


def test_last_words_are_the_step_that_failed_whatever_was_said_before(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    assert _last_words(ours) is None
    theirs.send(bytes((NETWORK_UP,)))
    theirs.send(bytes(Writer(STEP_FAILED).text("mount_proc").u32(errno.EPERM).text("no").data))
    theirs.close()
    refusal = _last_words(ours)
    assert refusal is not None
    assert (refusal.step, refusal.errno, refusal.strerror) == ("mount_proc", errno.EPERM, "no")


class Ended(Spawner):
    """One whose copy made ahead has ended, and that cannot make another."""

    def __init__(self, ahead: Zygote) -> None:
        self._ahead = ahead
        self._cpus, self._has_cpuset = CpuAllocator(), False
        self.ended: list[Zygote] = []

    def _make_zygote(self) -> Zygote:
        raise SpawnError("clone", OSError(errno.EAGAIN, "no"))

    def _end(self, zygote: Zygote) -> None:
        self.ended.append(zygote)


def test_zygote_that_has_ended_is_ended_once_when_the_fresh_one_fails_too(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends
    theirs.close()
    made = SimpleNamespace(
        make=lambda *_: None, remove=list, close=list, processes_files=[], join_descriptors=[], worker_group=[]
    )
    monkeypatch.setattr(zygote, "Groups", lambda *_: made)
    monkeypatch.setattr(zygote, "Freezer", lambda *_: None)
    made_ahead = Zygote(1, -1, ours, 1)
    spawner = Ended(made_ahead)
    spawner._tree = cast(Any, None)
    with socket.socket() as owner, pytest.raises(SpawnError) as refusal:
        spawner.spawn(PLAN, owner)
    assert (refusal.value.step, spawner.ended) == ("clone", [made_ahead])
    assert set(spawner._cpus._loads.values()) == {0}, "its processors are given back"


def test_zygote_ends_before_its_groups_go_when_a_limit_is_refused(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in them already, and a group that has a process stays."""
    ours, _theirs = ends
    made_ahead = Zygote(1, -1, ours, 1)
    spawner = Ended(made_ahead)
    removed: list[bool] = []

    def refuse(*_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    groups = SimpleNamespace(
        make=lambda: None,
        limit=refuse,
        remove=lambda: removed.append(spawner.ended == [made_ahead]),
        close=list,
        processes_files=[],
        join_descriptors=[],
        worker_group=[],
    )
    monkeypatch.setattr(zygote, "Groups", lambda *_: groups)
    monkeypatch.setattr(zygote, "Freezer", lambda *_: None)
    spawner._tree = cast(Any, None)
    with socket.socket() as owner, pytest.raises(SpawnError) as refusal:
        spawner.spawn(PLAN, owner)
    assert (refusal.value.step, refusal.value.errno, removed) == ("make_cgroup", errno.EINVAL, [True])
