"""Control groups of version 2, as Documentation/admin-guide/cgroup-v2.rst of the kernel describes them: one tree."""

from __future__ import annotations

import errno
import os
import select

from app.launcher.daemon.cgroup import PERIOD_US, WORKERS, CgroupTree, Hierarchy, OomEvents, quota_us
from app.launcher.daemon.cgroup_files import controllers_of, cpus_of, field, has, number_of, read, write, write_if_there
from app.launcher.sandbox.own_groups import GroupMount

SERVICE = "service"  # where our own processes move to, see `make_parent`
_CONTROLLERS = ("cpu", "memory", "pids", "cpuset")


class CgroupTreeV2(CgroupTree):
    """`memory.oom.group` is not set: it kills the whole group when memory runs out. A program that survives its child
    would then live on version 1 only, the worker would die with a command that it is just starting, and the kernel
    counts the first victim twice (6 kills of 5, seen)."""

    version = 2
    join_file = "cgroup.procs"
    counts_all_dead = False

    @property
    def _at(self) -> int:
        if not self.hierarchies:
            raise OSError(errno.ENOSYS, "this host has no control groups for us")
        return self.hierarchies[0].parent

    # --- "Organizing Processes and Threads", "Controlling Controllers"

    @staticmethod
    def obtain_controllers(folder: str) -> None:
        """From the groups above. systemd hands no cpuset down to a login session, nor to a unit that does not ask for
        it. What we may not change there stays: the layer is missing, and `layers` says so."""
        above = os.path.dirname(folder)
        missing = [name for name in _CONTROLLERS if name not in controllers_of(folder)]
        if not missing or not os.path.exists(above + "/cgroup.subtree_control"):
            return
        CgroupTreeV2.obtain_controllers(above)
        for name in missing:
            try:
                _turn_on(above, [name])
            except OSError:
                continue  # the next one may be there

    @staticmethod
    def obtainable(folder: str) -> set[str]:
        above = os.path.dirname(folder)
        if not _hands_down(above):
            return set()
        found = controllers_of(above) | CgroupTreeV2.obtainable(above)
        return (found & set(_CONTROLLERS)) - controllers_of(folder)

    @staticmethod
    def make_parent(folder: str, parent: str) -> None:
        """Controllers are handed down only through groups that hold no process, so ours move to a leaf first."""
        if os.path.exists(folder + "/cgroup.type"):  # the root group has no such file, and may hold processes
            os.makedirs(f"{folder}/{SERVICE}", exist_ok=True)
            with open(folder + "/cgroup.procs") as file:
                for pid in file.read().split():
                    with open(f"{folder}/{SERVICE}/cgroup.procs", "w") as target:
                        target.write(pid)
        found = [name for name in _CONTROLLERS if name in controllers_of(folder)]
        path = folder
        for part in ("", *parent.split("/")):
            path = f"{path}/{part}".rstrip("/")
            os.makedirs(path, exist_ok=True)
            _turn_on(path, found)

    @property
    def group_mounts(self) -> list[GroupMount]:
        return [
            GroupMount(number, "", self.join_file, "memory" in each.controllers)
            for number, each in enumerate(self.hierarchies)
        ]

    def hand_down(self, path: str) -> None:
        """Without cpuset: all executions have the processors of their sandbox."""
        for hierarchy in self.hierarchies:
            names = [f"+{name}" for name in _CONTROLLERS if name in hierarchy.controllers and name != "cpuset"]
            write(f"{path}/cgroup.subtree_control", self._at, " ".join(names))

    # --- "Memory"

    @staticmethod
    def can_limit_swap(at: int) -> bool:
        """Without swap accounting built in: a host that has no swap device needs no limit on it."""
        return has("memory.swap.max", at) or not _has_swap()

    def limit_workers_memory(self, size: int) -> None:
        write(f"{WORKERS}/memory.max", self._at, str(size))
        write_if_there(f"{WORKERS}/memory.swap.max", self._at, "0")

    def limit_memory(self, path: str, size: int) -> None:
        write(f"{path}/memory.max", self._at, str(size))
        if self.has_swap_limit:
            write_if_there(f"{path}/memory.swap.max", self._at, "0")  # see can_limit_swap

    def memory_limit(self, path: str) -> int:
        return number_of(read(f"{path}/memory.max", self._at))

    def memory_bytes(self, path: str) -> int | None:
        return int(read(f"{path}/memory.current", self._at)) if self.hierarchy("memory") else None

    def peak_bytes(self, path: str, most: int) -> int | None:
        """A group is charged before the one above it refuses, so its peak may hold what it never got."""
        if self.hierarchy("memory") is None:
            return None
        try:
            return min(int(read(f"{path}/memory.peak", self._at)), most)
        except FileNotFoundError:
            os.stat(path, dir_fd=self._at)
            return None  # before Linux 5.19

    def oom_kills(self, path: str) -> int:
        return field(read(f"{path}/memory.events", self._at), "oom_kill") if self.hierarchy("memory") else 0

    def oom_events(self, path: str) -> OomEvents | None:
        memory = self.hierarchy("memory")
        return OomEventsFile(path, memory.parent) if memory and has(f"{path}/memory.events", memory.parent) else None

    # --- "CPU"

    def prefer_workers(self) -> None:
        write_if_there(f"{WORKERS}/cpu.weight", self._at, "1000")  # others have 100
        enable = "+cpu +cpuset" if self.hierarchy("cpuset") else "+cpu"
        write(f"{WORKERS}/cgroup.subtree_control", self._at, enable)  # from now on only its children hold processes

    def limit_cpu(self, path: str, millis: int) -> None:
        write(f"{path}/cpu.max", self._at, f"{quota_us(millis)} {PERIOD_US}")

    def cpu_limit(self, path: str) -> int:
        return number_of(read(f"{path}/cpu.max", self._at).split()[0]) * 1000 // PERIOD_US

    def cpu_ns(self, path: str) -> int | None:
        return field(read(f"{path}/cpu.stat", self._at), "usage_usec") * 1000 if self.hierarchies else None

    # --- "Cpuset"

    def usable_cpus(self) -> list[int]:
        return cpus_of(read("cpuset.cpus.effective", self._at))

    def limit_cpus(self, path: str, cpus: str) -> None:
        write(f"{path}/cpuset.cpus", self._at, cpus)

    # --- "Core Interface Files"

    def kill(self, path: str, worker: int) -> None:
        if worker in self.processes(path):
            super().kill(path, worker)
            return
        write_if_there(f"{path}/cgroup.kill", self._at, "1")  # an earlier round may have taken it away

    @property
    def freezer(self) -> Hierarchy | None:
        """Every group can be frozen, since Linux 5.2."""
        return next(iter(self.hierarchies), None)

    def freeze(self, path: str) -> None:
        write(f"{path}/cgroup.freeze", self._at, "1")

    def thaw(self, path: str) -> None:
        write(f"{path}/cgroup.freeze", self._at, "0")

    def is_frozen(self, path: str) -> bool:
        return field(read(f"{path}/cgroup.events", self._at), "frozen") == 1

    def kill_frozen(self, path: str) -> None:
        """Nothing: a kill ends what is frozen."""

    def release(self, killed: list[int]) -> None:
        """Nothing, as above."""

    def end_frozen(self) -> None:
        """Nothing, as above."""

    def dead_groups(self) -> int:
        return field(read("cgroup.stat", self._at), "nr_dying_descendants")

    def drop_pages(self, at: int) -> None:
        write("memory.reclaim", at, read("memory.current", at).strip())


class OomEventsFile(OomEvents):
    """A change of `memory.events` since it was last read."""

    events = select.POLLPRI

    def __init__(self, path: str, at: int) -> None:
        """Raises OSError."""
        self.descriptor = os.open(f"{path}/memory.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
        self.take()

    def take(self) -> None:
        os.pread(self.descriptor, 4096, 0)


def _turn_on(folder: str, controllers: list[str]) -> None:
    """For the groups below `folder`. One that it has not refuses all."""
    with open(folder + "/cgroup.subtree_control", "w") as file:
        file.write(" ".join(f"+{name}" for name in controllers))


def _hands_down(folder: str) -> bool:
    """Whether `_turn_on` can work there: it is writable, and holds no process unless it is the root group."""
    if not os.access(folder + "/cgroup.subtree_control", os.W_OK):
        return False
    try:
        return not os.path.exists(folder + "/cgroup.type") or not read(folder + "/cgroup.procs", -1)
    except OSError:
        return False


def _has_swap() -> bool:
    with open("/proc/swaps") as file:
        return len(file.read().splitlines()) > 1  # below the line of heading
