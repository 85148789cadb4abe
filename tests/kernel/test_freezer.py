"""The freezer of either version on the running kernel: what is frozen does not run, and not for its end either."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.launcher.daemon.cgroup import CgroupTree, Hierarchy
from app.launcher.daemon.cgroup_kill import kill_each
from app.launcher.daemon.cgroup_v1 import CgroupTreeV1
from app.launcher.daemon.cgroup_v2 import CgroupTreeV2
from app.launcher.daemon.freezer import Freezer
from app.launcher.kernel.syscalls import clone3, kill_by_pidfd
from tests.kernel import host
from tests.require import require

both = pytest.mark.parametrize("version", [1, 2])


class Counting:
    """A child that does nothing but count, in memory that is shared with it."""

    def __init__(self, room: Path) -> None:
        self._memory = mmap.mmap(-1, 8)
        self.pid, self._pidfd = clone3(0)
        while self.pid == 0:
            self._memory[:] = (self.value + 1).to_bytes(8, "little")
        (room / "cgroup.procs").write_text(str(self.pid))
        host.until(lambda: self.value > 0, "it counts")

    @property
    def value(self) -> int:
        return int.from_bytes(self._memory[:], "little")

    def stands(self) -> int:
        """What it has counted to, and does not go beyond."""
        before = self.value
        time.sleep(0.05)  # in which it must not count
        assert self.value == before
        return before

    def goes_on(self) -> None:
        before = self.value
        host.until(lambda: self.value > before, "it counts on")

    def end(self) -> int:
        """Waits for the kill that somebody sent it: its signal."""
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        return os.WTERMSIG(status)

    def close(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                kill_by_pidfd(self._pidfd, signal.SIGKILL)
            self.end()
        os.close(self._pidfd)


class Room:
    """A payload with two that count, in a tree of one version."""

    def __init__(self, tree: CgroupTree, folder: Path) -> None:
        self.tree, self.folder = tree, folder
        self.freezer = Freezer(tree, folder.name)
        self.first, self.second = Counting(folder), Counting(folder)

    def freeze(self) -> None:
        self.freezer.freeze()
        host.until(lambda: self.freezer.settled, "all stop")


@contextlib.contextmanager
def room(version: int) -> Iterator[Room]:
    require("root", os.geteuid() == 0, "control groups are made by root")
    kind, mounts = "cgroup" if version == 1 else "cgroup2", Path("/proc/self/mountinfo").read_text().splitlines()
    fields = [line.split() for line in mounts if f" - {kind} " in line]
    fitting = [words[4] for words in fields if version == 2 or "freezer" in words[-1].split(",")]
    require(f"freezer{version}", bool(fitting), f"a freezer of version {version} that is mounted")
    parent = Path(fitting[0], f"bulkhead-freezer-{os.getpid()}")
    folders = [parent, parent / "_workers", parent / "s-one"]
    for folder in folders:
        folder.mkdir()
    descriptor, made = os.open(parent, os.O_RDONLY | os.O_DIRECTORY), None
    try:
        tree = CgroupTreeV1 if version == 1 else CgroupTreeV2
        made = Room(tree("x", [Hierarchy(("freezer",), descriptor)]), parent / "s-one")
        yield made
    finally:
        if made is not None:
            made.freezer.thaw()
            made.first.close()
            made.second.close()
        os.close(descriptor)
        for folder in reversed(folders):
            host.until(lambda folder=folder: removed(folder), f"{folder} is empty")  # type: ignore[misc]


def removed(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


@both
def test_what_is_frozen_does_not_run_and_goes_on_when_thawed(version: int) -> None:
    with room(version) as one:
        one.first.goes_on()
        one.freeze()
        one.first.stands()
        one.freezer.thaw()
        one.first.goes_on()


@both
def test_a_room_that_is_killed_runs_nothing_more(version: int) -> None:
    with room(version) as one:
        one.freeze()
        before = one.first.stands(), one.second.stands()
        one.freezer.kill_frozen()
        if version == 2:  # where the kernel ends what is frozen, as it does when a namespace's PID 1 dies
            kill_each([one.first.pid, one.second.pid], lambda: [one.first.pid, one.second.pid])
        one.freezer.thaw()
        assert [one.first.end(), one.second.end()] == [signal.SIGKILL] * 2
        assert (one.first.value, one.second.value) == before


@both
def test_one_that_is_killed_beside_another_ends_and_the_other_stays_frozen(version: int) -> None:
    with room(version) as one:
        one.freeze()
        before = one.first.stands()
        kill_each([one.first.pid], lambda: [one.first.pid])
        one.freezer.release([one.first.pid])
        assert one.first.end() == signal.SIGKILL
        assert one.first.value == before
        one.second.stands()
        one.freezer.release([999_999_999])  # of one that has just ended
        one.freezer.thaw()
        one.second.goes_on()


def test_on_version_1_a_kill_alone_waits_for_the_thaw() -> None:
    """The control: why the payload is doomed before it is thawed, and the killed are let out."""
    with room(1) as one:
        one.freeze()
        kill_each([one.first.pid], lambda: [one.first.pid])
        time.sleep(0.1)  # in which it must not end
        assert os.waitpid(one.first.pid, os.WNOHANG) == (0, 0)


def test_what_a_dead_launcher_left_frozen_is_ended_without_running_on() -> None:
    with room(1) as one:
        one.freeze()
        before = one.first.stands(), one.second.stands()
        one.tree.end_frozen()
        assert [one.first.end(), one.second.end()] == [signal.SIGKILL] * 2
        assert (one.first.value, one.second.value) == before


def test_what_runs_is_not_touched_by_the_search_for_what_was_left() -> None:
    with room(1) as one:
        one.tree.end_frozen()
        one.first.goes_on()
