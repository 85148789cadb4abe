"""Stops everything in a sandbox but its worker: the kernel freezes the sandbox's control group.

The worker lives outside of that group on both versions, and stays awake. It reaps what is killed during the pause and
reports it, takes signals (the kernel keeps them for frozen processes), and ends with its owner.

On version 2 (cgroup.freeze) a kill ends a frozen process. On version 1 (freezer.state) a kill takes effect only after a
thaw. So SIGKILL is always sent before the thaw: a killed process runs not one more instruction.
"""

from __future__ import annotations

import errno
import time

from app.launcher.daemon.cgroup import CgroupTree, Hierarchy, folders, pids, read, write
from app.launcher.daemon.cgroup import field as number_in
from app.launcher.daemon.cgroup_kill import kill_each

# Moving another process takes a lock and an RCU grace period, 10 to 17 ms measured for the first: not all in one turn.
_RELEASED_AT_ONCE = 16
_END_SECONDS = 2.0


class Freezer:
    """Of one sandbox, whose payload is called `name`."""

    __slots__ = ("_first", "_hierarchy", "_name", "frozen")

    def __init__(self, tree: CgroupTree, name: str) -> None:
        self._hierarchy, self._name, self._first = tree.freezer, name, tree.version == 1
        self.frozen = False  # asked for and not taken back, whether or not all have stopped yet

    @property
    def available(self) -> bool:
        return self._hierarchy is not None

    def freeze(self) -> None:
        """Begins it: each process stops at its next return from the kernel. Raises OSError."""
        self._write("FROZEN", "1")
        self.frozen = True

    def thaw(self) -> None:
        """Of one that is not frozen: nothing. Raises OSError."""
        if self.frozen:
            self._write("THAWED", "0")
            self.frozen = False

    @property
    def settled(self) -> bool:
        """All have stopped, and none can begin to run or fork. Raises OSError."""
        if not self.frozen or self._hierarchy is None:
            return False
        if self._first:
            return read(f"{self._name}/freezer.state", self._hierarchy.parent).strip() == "FROZEN"
        return number_in(read(f"{self._name}/cgroup.events", self._hierarchy.parent), "frozen") == 1

    def _write(self, first: str, second: str) -> None:
        if self._hierarchy is None:
            raise OSError(errno.ENOSYS, "this host has no freezer")
        path, value = ("freezer.state", first) if self._first else ("cgroup.freeze", second)
        write(f"{self._name}/{path}", self._hierarchy.parent, value)

    # --- version 1: what a kill needs beside it

    def doom(self) -> None:
        """SIGKILL for all that is frozen, ahead of a thaw."""
        if self.frozen and self._first and self._hierarchy is not None:
            _kill_all(self._hierarchy, self._name)

    def release(self, killed: list[int]) -> None:
        """Lets some of what was killed end while the others stay frozen: it is thawed by leaving the group. These
        pids are frozen, so they are still those that were killed. Raises OSError."""
        if self._first and self._hierarchy is not None:
            for pid in killed[:_RELEASED_AT_ONCE]:
                try:
                    write("_workers/cgroup.procs", self._hierarchy.parent, str(pid))
                except ProcessLookupError:
                    continue


def _kill_all(hierarchy: Hierarchy, payload: str) -> None:
    def listed() -> list[int]:
        below = folders(payload, hierarchy.parent)  # none, unless the tree has other controllers too
        return [
            pid for path in (payload, *(f"{payload}/{name}" for name in below)) for pid in pids(path, hierarchy.parent)
        ]

    kill_each(listed(), listed)


def end_frozen(tree: CgroupTree) -> None:
    """Ends what a launcher that was killed left frozen: its worker is dead, and on version 1 the kernel waits for them
    until somebody thaws them. Returns when they are gone, or after 2 s. Raises OSError."""
    hierarchy = tree.freezer
    if hierarchy is None or tree.version != 1:
        return
    deadline = time.monotonic() + _END_SECONDS
    for payload in folders(".", hierarchy.parent):
        if read(f"{payload}/freezer.state", hierarchy.parent).strip() == "THAWED":
            continue
        _kill_all(hierarchy, payload)
        write(f"{payload}/freezer.state", hierarchy.parent, "THAWED")
        while pids(payload, hierarchy.parent) and time.monotonic() < deadline:
            time.sleep(0.002)  # at the start, before anybody is served; the kernel tells nobody that a group is empty
