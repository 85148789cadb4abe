"""What a sandbox, or one execution of it, uses at this moment, as control groups and /proc tell it."""

from __future__ import annotations

import os

from app.launcher.daemon.cgroup import CgroupTree, field, pids, read
from app.launcher.protocol import Writer

UNKNOWN = (1 << 64) - 1  # on the wire
# Each is a stat of its /proc/PID/fd: 2 us, and the launcher has one thread.
MOST_PROCESSES = 1024


class Figures:
    """Bytes, nanoseconds, counts; None where the host does not tell. `processes`: threads too, as the limit counts."""

    __slots__ = ("cpu_ns", "memory_bytes", "open_files", "peak_bytes", "processes")

    def __init__(self, tree: CgroupTree, group: str, alive: list[int], workers: int = 0) -> None:
        """`group`: below the folder of this instance. `workers`: how many processes in it are none of the sandbox's.
        Raises OSError when it is gone."""
        first = tree.version == 1
        memory, counted = tree.hierarchy("memory"), tree.hierarchy("pids")
        self.memory_bytes = self.peak_bytes = self.cpu_ns = self.processes = None
        if memory:
            now, most = ("usage_in_bytes", "max_usage_in_bytes") if first else ("current", "peak")
            self.memory_bytes = _number(f"{group}/memory.{now}", memory.parent)
            self.peak_bytes = _number(f"{group}/memory.{most}", memory.parent)
        if counted:
            found = _number(f"{group}/pids.current", counted.parent)
            self.processes = None if found is None else max(0, found - workers)
        if not first and tree.hierarchies:
            self.cpu_ns = field(read(f"{group}/cpu.stat", tree.hierarchies[0].parent), "usage_usec") * 1000
        elif account := tree.hierarchy("cpuacct"):
            self.cpu_ns = _number(f"{group}/cpuacct.usage", account.parent)
        self.open_files = open_files_of(alive)

    def write(self, into: Writer) -> Writer:
        for value in (self.memory_bytes, self.peak_bytes, self.cpu_ns, self.processes, self.open_files):
            into.u64(UNKNOWN if value is None else value)
        return into


def _number(path: str, at: int) -> int | None:
    """None for what this kernel does not have. Raises OSError when the group is gone."""
    try:
        return int(read(path, at))
    except FileNotFoundError:
        os.stat(os.path.dirname(path), dir_fd=at)
        return None


def open_files_of(alive: list[int]) -> int | None:
    """Descriptors of all these processes together. The size of /proc/PID/fd is their number since Linux 6.2."""
    if len(alive) > MOST_PROCESSES or os.stat("/proc/self/fd").st_size == 0:
        return None
    total = 0
    for pid in alive:
        try:
            total += os.stat(f"/proc/{pid}/fd").st_size
        except OSError:
            continue  # it has just ended
    return total


def all_pids(tree: CgroupTree, groups: list[str]) -> list[int]:
    """Of these groups together; a few more than MOST_PROCESSES at most."""
    found: list[int] = []
    accounting = [hierarchy.parent for hierarchy in tree.hierarchies if hierarchy.accounts][:1]
    for parent in accounting:
        for group in groups:
            found += pids(group, parent)
            if len(found) > MOST_PROCESSES:
                break
    return found
