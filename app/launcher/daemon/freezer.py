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
    """The freezer of one sandbox, whose payload's group is called `name`."""

    __slots__ = ("_first", "_hierarchy", "_name", "frozen")

    def __init__(self, tree: CgroupTree, name: str) -> None:
        self._hierarchy, self._name, self._first = tree.freezer, name, tree.version == 1
        self.frozen = False  # asked for and not taken back, whether or not all have stopped yet

    @property
    def available(self) -> bool:
        return self._hierarchy is not None

    def freeze(self) -> None:
        """Begins to freeze: each process stops at its next return from the kernel. Raises OSError."""
        self._write("FROZEN", "1")
        self.frozen = True

    def thaw(self) -> None:
        """Thaws the payload. Does nothing if it is not frozen. Raises OSError."""
        if self.frozen:
            self._write("THAWED", "0")
            self.frozen = False

    @property
    def settled(self) -> bool:
        """Whether all processes have stopped, so that none can run or fork. Raises OSError."""
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
        """Sends SIGKILL to all that is frozen, before a thaw."""
        if self.frozen and self._first and self._hierarchy is not None:
            _kill_all(self._hierarchy, self._name)

    def release(self, killed: list[int]) -> None:
        """Lets some killed processes end while the others stay frozen: a process that leaves the group is thawed. These
        processes are frozen, so their pids still belong to them. Raises OSError."""
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
    """Ends processes that a killed launcher left frozen. Their worker is dead, and on version 1 they stay until they
    are thawed. Returns when they are gone, or after 2 s. Raises OSError."""
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
