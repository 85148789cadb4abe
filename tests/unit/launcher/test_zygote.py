"""What a zygote that was made ahead has said is heard by the one that it is for."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.launcher.daemon.connection import Connection
from app.launcher.daemon.cpu_allocation import CpuAllocator
from app.launcher.daemon.groups import Groups
from app.launcher.daemon.zygote import Spawner, SpawnError, Zygote, _last_words
from app.launcher.protocol import GROUPS, NETWORK_UP, STEP_FAILED, CreatePlan, Writer
from app.launcher.protocol.packets import close, receive

PLAN = CreatePlan("one", "host", "default", 1000, 1 << 28, 1 << 26, 64, False, ["/usr"], ["/tmp"])


def groups(made: list[str], busy: int = 0, changes: dict[str, Any] | None = None) -> Groups:
    """They note in `made` what is done with them. The first `busy` removals leave something."""

    def remove() -> bool:
        made.append("remove")
        return made.count("remove") > busy

    parts = {"join_descriptors": [0], "worker_group": [1], "processes_files": [], "name": "s-1"}
    calls = {"make": lambda: made.append("make"), "close": lambda: None, "remove": remove, "limit": lambda *_: None}
    return cast(Groups, SimpleNamespace(**{**parts, **calls, **(changes or {})}))


def refused(*_: object) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_nothing_is_heard_until_something_is_said(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    zygote = Zygote(1, -1, ours, 1, groups([]))
    assert zygote.first_word() is None
    theirs.send(bytes((NETWORK_UP,)))
    assert zygote.first_word() == NETWORK_UP
    assert zygote.first_word() is None


def test_a_step_that_failed_and_an_end_without_a_word_are_told_apart_from_silence(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.send(bytes(Writer(STEP_FAILED).text("enter_network_namespace").u32(1).text("no").data))
    zygote = Zygote(1, -1, ours, 1, groups([]))
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
    spawner._tried, spawner._uids, spawner._leaving = True, [], []
    spawner._ahead = Zygote(pid, os.pidfd_open(pid), ours, 7, groups([]))
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
    """One that cannot make a clone beside the one that was made ahead, and that notes which it ends."""

    def __init__(self, ahead: Zygote) -> None:
        self._ahead = ahead
        self._cpus, self._has_cpuset = CpuAllocator(), False
        self._uids: list[int] = []
        self._leaving: list[Zygote] = []
        self.ended: list[Zygote] = []

    def _make_zygote(self) -> Zygote:
        raise SpawnError("clone", OSError(errno.EAGAIN, "no"))

    def _end(self, zygote: Zygote) -> None:
        self.ended.append(zygote)


@pytest.mark.parametrize("has_groups", [False, True])
def test_zygote_that_has_ended_is_ended_once_when_the_fresh_one_fails_too(
    ends: tuple[socket.socket, socket.socket], has_groups: bool
) -> None:
    ours, theirs = ends
    theirs.close()
    made_ahead = Zygote(1, -1, ours, 1, groups([]))
    made_ahead.has_groups = has_groups
    spawner = Ended(made_ahead)
    with socket.socket() as owner, pytest.raises(SpawnError) as refusal:
        spawner.spawn(PLAN, owner)
    assert (refusal.value.step, spawner.ended) == ("clone", [made_ahead])
    assert set(spawner._cpus._loads.values()) == {0}, "its processors are given back"


@pytest.mark.parametrize("call", ["make", "limit"])
def test_zygote_ends_when_its_groups_or_a_limit_are_refused(
    ends: tuple[socket.socket, socket.socket], call: str
) -> None:
    ours, _theirs = ends
    made_ahead = Zygote(1, -1, ours, 1, groups([], changes={call: refused}))
    spawner = Ended(made_ahead)
    with socket.socket() as owner, pytest.raises(SpawnError) as refusal:
        spawner.spawn(PLAN, owner)
    assert (refusal.value.step, refusal.value.errno, spawner.ended) == ("make_cgroup", errno.EINVAL, [made_ahead])
    assert set(spawner._cpus._loads.values()) == {0}


def test_clone_is_prepared_in_three_parts(ends: tuple[socket.socket, socket.socket]) -> None:
    """Between them the launcher hears its requests."""
    ours, theirs = ends
    done: list[str] = []
    fresh = Zygote(1, -1, ours, 1, groups(done))

    class Preparing(Ended):
        def _make_zygote(self) -> Zygote:
            return fresh

    spawner, gateway = Preparing(fresh), cast(Connection, object())
    spawner._ahead, spawner._tried = None, False
    assert spawner.prepare(gateway) is None
    assert spawner.prepare(gateway) is None, "its network is not up yet"
    theirs.send(bytes((NETWORK_UP,)))
    assert spawner.prepare(gateway) is fresh
    assert (done, spawner.prepared) == ([], False)
    assert spawner.prepare(gateway) is None
    assert (done, spawner.prepared) == (["make"], True)
    packet, descriptors = receive(theirs)
    close(descriptors)
    assert (packet[0], len(descriptors)) == (GROUPS, 2)


def test_clone_whose_groups_cannot_be_made_ahead_is_given_up(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _theirs = ends
    made_ahead = Zygote(1, -1, ours, 1, groups([], changes={"make": refused}))
    made_ahead.shown_to = cast(Connection, object())
    spawner = Ended(made_ahead)
    assert spawner.prepare(made_ahead.shown_to) is None
    assert (spawner.ended, spawner._ahead, spawner.prepared) == ([made_ahead], None, True)


def test_uid_is_not_used_again_while_a_group_of_its_name_is_there() -> None:
    """The kernel may hold a group for a moment after its last process has ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    done: list[str] = []
    spawner = Ended(Zygote(-1, -1, ours, 7, groups(done, busy=2)))
    assert spawner._ahead is not None
    Spawner._end(spawner, spawner._ahead)
    assert (done, spawner._uids) == (["remove"], [])
    for uids in ([], [7]):
        spawner._try_to_forget()
        assert spawner._uids == uids
    spawner._try_to_forget()
    assert (len(done), spawner._uids) == (3, [7])


def test_failure_to_make_the_channel_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    spawner = Spawner.__new__(Spawner)
    spawner._uids, spawner._leaving = [7], []

    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("app.launcher.daemon.zygote._socket.socketpair", full)
    with pytest.raises(SpawnError) as refusal:
        spawner._make_zygote()
    assert (refusal.value.step, refusal.value.errno, spawner._uids) == ("clone", errno.EMFILE, [7])
