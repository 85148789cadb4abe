"""Control groups of version 1, as Documentation/admin-guide/cgroup-v1/ of the kernel describes them.

Each controller may be a tree of its own, and a group in one costs 30 to 90 us to make and remove. So an execution has a
group only in the trees that count something for it: memory, pids and cpuacct. A sandbox has a group in every tree, as
the root of its cgroup namespace. Its limits come from memory, pids, cpu and cpuset, and it is frozen as a whole.
"""

from __future__ import annotations

import errno
import os
import select
import time

from app.launcher.daemon.cgroup import PERIOD_US, WORKERS, CgroupTree, Hierarchy, OomEvents, quota_us
from app.launcher.daemon.cgroup_files import cpus_of, field, folders, has, number_of, pids, read, write, write_if_there
from app.launcher.daemon.cgroup_kill import kill_each
from app.launcher.sandbox.own_groups import GroupMount

# The memory limit leaves the buffers of UDP and TCP sockets out: 1.3 GiB on its own loopback, measured, and more until
# `udp_mem` of the whole host is used up. They have a limit of their own, which counts for a group only once it was
# written there, and which its children do not inherit.
_SOCKET_LIMIT, SOCKET_BYTES, _ONLY_COUNTED = "memory.kmem.tcp.limit_in_bytes", 32 * 1024 * 1024, -1
# Moving another process takes a lock and an RCU grace period, 10 to 17 ms measured for the first: not all in one turn.
_RELEASED_AT_ONCE = 16
_END_SECONDS = 2.0
_CPUSET = ("cpuset.mems", "cpuset.cpus")  # of a new group they are empty
# What a sandbox sees of its groups. Java 17 ignores its memory limit unless all four are mounted (measured).
SHOWN = {"cpu", "cpuacct", "cpuset", "memory"}


class CgroupTreeV1(CgroupTree):
    version = 1
    # One thread moves itself: 20 to 55 us measured. `cgroup.procs` takes a global lock and an RCU grace period, 10 ms.
    join_file = "tasks"
    counts_all_dead = True

    _cpuset: dict[str, str]  # file -> what the groups of this service may use

    @staticmethod
    def obtain_controllers(folder: str) -> None:
        """Nothing: every group of a mounted hierarchy has its controllers."""

    @staticmethod
    def obtainable(folder: str) -> set[str]:
        return set()

    @staticmethod
    def make_parent(folder: str, parent: str) -> None:
        """A new group of `cpuset` may use nothing, and nobody can join it. So each gets what the one above has."""
        path = folder
        for part in parent.split("/"):
            above, path = path, f"{path}/{part}"
            os.makedirs(path, exist_ok=True)
            for name in _CPUSET if os.path.exists(f"{path}/{_CPUSET[0]}") else ():
                with open(f"{above}/{name}") as source, open(f"{path}/{name}", "w") as target:
                    target.write(source.read())

    def start(self) -> None:
        super().start()
        if cpuset := self.hierarchy("cpuset"):
            self._cpuset = {name: read(name, cpuset.parent) for name in _CPUSET}
        if self.hierarchy("memory"):
            self._limit_sockets(".", _ONLY_COUNTED)  # now: the first group of a host that does so patches the kernel

    def make_group(self, hierarchy: Hierarchy, path: str) -> None:
        super().make_group(hierarchy, path)
        if "cpuset" in hierarchy.controllers:  # before it has processors and memory nobody can join
            at, above = hierarchy.parent, os.path.dirname(path)
            # First: a group that has processors and asks for balance makes the kernel look at all groups of the host.
            write(f"{path}/cpuset.sched_load_balance", at, "0")
            for name, own in self._cpuset.items():
                write(f"{path}/{name}", at, read(f"{above}/{name}", at) if above else own)

    def hand_down(self, path: str) -> None:
        """Nothing: children have the controllers of their tree."""

    @property
    def group_mounts(self) -> list[GroupMount]:
        numbered = enumerate(self.hierarchies)
        shown = [(number, each) for number, each in numbered if SHOWN & set(each.controllers)]
        return [GroupMount(number, each.names, self.join_file, "memory" in each.controllers) for number, each in shown]

    # --- memory.rst

    @staticmethod
    def can_limit_swap(at: int) -> bool:
        return has("memory.memsw.limit_in_bytes", at)

    def limit_workers_memory(self, size: int) -> None:
        at = self._at("memory")
        write(f"{WORKERS}/memory.limit_in_bytes", at, str(size))
        write_if_there("memory.swappiness", at, "0")  # every group below inherits it

    def limit_memory(self, path: str, size: int) -> None:
        at = self._at("memory")
        write(f"{path}/memory.limit_in_bytes", at, str(size))
        self._limit_sockets(path, SOCKET_BYTES)
        if self.has_swap_limit:
            write(f"{path}/memory.memsw.limit_in_bytes", at, str(size))  # memory and swap together

    def memory_limit(self, path: str) -> int:
        return number_of(read(f"{path}/memory.limit_in_bytes", self._at("memory")))

    def _limit_sockets(self, path: str, size: int) -> None:
        """For the sockets that the group's processes open from now on."""
        # Kernels announce since 6.12 to give it up.
        write_if_there(f"{path}/{_SOCKET_LIMIT}", self._at("memory"), str(size))

    def memory_bytes(self, path: str) -> int | None:
        memory = self.hierarchy("memory")
        return int(read(f"{path}/memory.usage_in_bytes", memory.parent)) if memory else None

    def peak_bytes(self, path: str, most: int) -> int | None:
        memory = self.hierarchy("memory")
        return int(read(f"{path}/memory.max_usage_in_bytes", memory.parent)) if memory else None

    def oom_kills(self, path: str) -> int:
        memory = self.hierarchy("memory")
        return field(read(f"{path}/memory.oom_control", memory.parent), "oom_kill") if memory else 0

    def oom_events(self, path: str) -> OomEvents | None:
        memory = self.hierarchy("memory")
        if memory is None or not has(f"{path}/cgroup.event_control", memory.parent):
            return None  # kernels announce since 6.12 to give it up
        return OomEventfd(path, memory.parent)

    # --- scheduler/sched-bwc.rst, sched-design-CFS.rst, cpuacct.rst

    def prefer_workers(self) -> None:
        write_if_there(f"{WORKERS}/cpu.shares", self._at("cpu"), "10240")  # others have 1024

    def limit_cpu(self, path: str, millis: int) -> None:
        write(f"{path}/cpu.cfs_quota_us", self._at("cpu"), str(quota_us(millis)))

    def cpu_limit(self, path: str) -> int:
        return number_of(read(f"{path}/cpu.cfs_quota_us", self._at("cpu"))) * 1000 // PERIOD_US

    def cpu_ns(self, path: str) -> int | None:
        account = self.hierarchy("cpuacct")
        return int(read(f"{path}/cpuacct.usage", account.parent)) if account else None

    # --- cpusets.rst

    def usable_cpus(self) -> list[int]:
        return cpus_of(read("cpuset.effective_cpus", self._at("cpuset")))

    def limit_cpus(self, path: str, cpus: str) -> None:
        write(f"{path}/cpuset.cpus", self._at("cpuset"), cpus)

    # --- freezer-subsystem.rst: a kill counts only once the process is thawed

    @property
    def freezer(self) -> Hierarchy | None:
        return self.hierarchy("freezer")

    def freeze(self, path: str) -> None:
        write(f"{path}/freezer.state", self._at("freezer"), "FROZEN")

    def thaw(self, path: str) -> None:
        write(f"{path}/freezer.state", self._at("freezer"), "THAWED")

    def is_frozen(self, path: str) -> bool:
        return read(f"{path}/freezer.state", self._at("freezer")).strip() == "FROZEN"

    def kill_frozen(self, path: str) -> None:
        at = self._at("freezer")

        def listed() -> list[int]:
            below = folders(path, at)  # none, unless the tree has other controllers too
            return [pid for group in (path, *(f"{path}/{name}" for name in below)) for pid in pids(group, at)]

        kill_each(listed(), listed)

    def release(self, killed: list[int]) -> None:
        """A process that leaves the group is thawed. These processes are frozen, so their pids still belong to them."""
        for pid in killed[:_RELEASED_AT_ONCE] if self.freezer else ():
            try:
                write(f"{WORKERS}/cgroup.procs", self._at("freezer"), str(pid))
            except ProcessLookupError:
                continue

    def end_frozen(self) -> None:
        """Their worker is dead, and they stay until they are thawed. Returns when they are gone, or after 2 s."""
        if self.freezer is None:
            return
        deadline = time.monotonic() + _END_SECONDS
        for payload in folders(".", self.freezer.parent):
            if read(f"{payload}/freezer.state", self.freezer.parent).strip() == "THAWED":
                continue
            self.kill_frozen(payload)
            self.thaw(payload)
            while pids(payload, self.freezer.parent) and time.monotonic() < deadline:
                time.sleep(0.002)  # before anybody is served; the kernel tells nobody that a group is empty

    # --- groups that were removed

    def dead_groups(self) -> int:
        """Of the whole host, and the living ones of others among them: /proc/cgroups, cgroups(7), has all together."""
        with open("/proc/cgroups") as file:
            number = next((int(line.split()[2]) for line in file if line.startswith("memory\t")), 0)
        return number - self.living_groups

    def drop_pages(self, at: int) -> None:
        write("memory.force_empty", at, "0")

    def _at(self, controller: str) -> int:
        hierarchy = self.hierarchy(controller)
        if hierarchy is None:
            raise OSError(errno.ENOSYS, f"this host has no {controller} controller")
        return hierarchy.parent


class OomEventfd(OomEvents):
    """cgroups.rst, "Notification API": an eventfd that is registered with `memory.oom_control`."""

    events = select.POLLIN

    def __init__(self, path: str, at: int) -> None:
        """Raises OSError."""
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(f"{path}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
            try:
                write(f"{path}/cgroup.event_control", at, f"{self.descriptor} {control}")
            finally:
                os.close(control)
        except OSError:
            self.close()
            raise

    def take(self) -> None:
        os.eventfd_read(self.descriptor)
