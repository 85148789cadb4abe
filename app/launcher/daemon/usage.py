"""What a sandbox, or one execution of it, uses at this moment, as control groups and /proc tell it."""

from __future__ import annotations

import os

from app.launcher.daemon.cgroup import CgroupTree
from app.launcher.daemon.cgroup_files import read
from app.launcher.daemon.probe import descriptors_of
from app.launcher.protocol import Writer

UNKNOWN = (1 << 64) - 1  # on the wire
# Each is a stat of its /proc/PID/fd: 2 us, and the launcher has one thread.
MOST_PROCESSES = 1024


class Figures:
    """Bytes, nanoseconds, counts; None where the host does not tell. `processes`: threads too, as the limit counts."""

    __slots__ = ("cpu_ns", "memory_bytes", "open_files", "peak_bytes", "processes")

    def __init__(self, tree: CgroupTree, group: str, most: int, alive: list[int], workers: int = 0) -> None:
        """`most`: the memory limit of the sandbox. `workers`: how many processes in the group are none of the
        sandbox's. Raises OSError when it is gone."""
        counted = tree.hierarchy("pids")
        self.memory_bytes, self.peak_bytes = tree.memory_bytes(group), tree.peak_bytes(group, most)
        self.cpu_ns = tree.cpu_ns(group)
        self.processes = None
        if counted:
            self.processes = max(0, int(read(f"{group}/pids.current", counted.parent)) - workers)
        self.open_files = open_files_of(alive)

    def write(self, into: Writer) -> Writer:
        for value in (self.memory_bytes, self.peak_bytes, self.cpu_ns, self.processes, self.open_files):
            into.u64(UNKNOWN if value is None else value)
        return into


def open_files_of(alive: list[int]) -> int | None:
    """Descriptors of all these processes together. None where the host does not tell."""
    if len(alive) > MOST_PROCESSES or descriptors_of(os.getpid()) == 0:
        return None
    total = 0
    for pid in alive:
        try:
            total += descriptors_of(pid)
        except OSError:
            continue  # it has just ended
    return total


def all_pids(tree: CgroupTree, groups: list[str]) -> list[int]:
    """Of these groups together; a few more than MOST_PROCESSES at most."""
    found: list[int] = []
    for group in groups:
        found += tree.processes(group)
        if len(found) > MOST_PROCESSES:
            break
    return found
