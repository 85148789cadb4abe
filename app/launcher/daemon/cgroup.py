"""This instance's control groups: what the launcher wants of them, and what is the same on both versions.

::

    <parent>/_workers             every worker, outside of all limits: an out-of-memory kill never takes one
    <parent>/_workers/s-<uid>     its worker's cpu time, which has a limit of its own
    <parent>/s-<uid>              the limits of the sandbox with this host uid          (groups.py)
    <parent>/s-<uid>/<n>          one execution: its kill list, cpu time, peak memory and out-of-memory count

`CgroupTree` is the interface. `cgroup_v1.py` and `cgroup_v2.py` have a class each that does it with the files of that
version. No other code asks for the version.

A process enters a group by writing 0 to a descriptor that root opened. The kernel checks the opener's credentials, so
only the worker gets such a descriptor.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

from app.launcher.daemon.cgroup_files import folders, pids, write, write_if_there
from app.launcher.daemon.cgroup_kill import kill_each
from app.launcher.sandbox.own_groups import GroupMount

PERIOD_US = 100_000  # in which a group may use its quota of cpu time; the kernel's own choice
# For each worker: a start and an end take 0.3 ms. One limit for all workers would let one sandbox that keeps its worker
# busy hold up those of all others.
WORKER_CPU_MILLIS = 200
WORKERS = "_workers"  # no sandbox id begins with _


class Hierarchy:
    """One mounted tree: its controllers, this service's folder in it, and the group of the workers."""

    __slots__ = ("accounts", "controllers", "cpuset_only", "names", "parent", "workers")

    def __init__(self, controllers: tuple[str, ...], parent: int, names: str = "") -> None:
        self.controllers, self.parent = controllers, parent
        self.names = names or ",".join(controllers)  # of all its controllers, as the kernel lists them
        self.workers = -1  # to join them
        self.accounts = bool({"memory", "pids", "cpuacct"} & set(controllers))
        # It says where processes run and limits nothing else. So the worker lives in its sandbox's group, and commands
        # are born there.
        self.cpuset_only = controllers == ("cpuset",)


class OomEvents(ABC):
    """The kernel's reports of kills for memory in one group. Poll `descriptor` for `events`, and call `take` after
    each."""

    descriptor: int
    events: int

    @abstractmethod
    def take(self) -> None: ...

    def close(self) -> None:
        os.close(self.descriptor)


class CgroupTree(ABC):
    """This service's part of the host's control groups. A `path` is that of a group, below the service's folder.

    Methods raise OSError, which is FileNotFoundError for a group that is gone.
    """

    version: int
    join_file: str  # whoever writes 0 into it joins the group
    counts_all_dead: bool  # `dead_groups` has those of others in it

    def __init__(self, parent: str, hierarchies: list[Hierarchy]) -> None:
        self.hierarchies, self._parent = hierarchies, parent
        self.has_swap_limit = False
        self.living_groups = self.removed_groups = 0  # memory groups of this service: there, and gone

    # --- the host

    @staticmethod
    @abstractmethod
    def obtain_controllers(folder: str) -> None:
        """Turns on those that the host has and our own group, `folder`, has not."""

    @staticmethod
    @abstractmethod
    def obtainable(folder: str) -> set[str]:
        """Those that `obtain_controllers` would turn on. It only looks."""

    @staticmethod
    def make_parent(folder: str, parent: str) -> None:
        """Makes this instance's folder, `parent`, in `folder`, which is the group that the launcher was started in."""
        os.makedirs(f"{folder}/{parent}", exist_ok=True)

    @staticmethod
    @abstractmethod
    def can_limit_swap(at: int) -> bool:
        """Below the group that is open as `at`, which has the memory controller."""

    def start(self) -> None:
        """Once, before the first group is made."""
        memory = self.hierarchy("memory")
        self.has_swap_limit = memory is not None and self.can_limit_swap(memory.parent)

    @property
    def layers(self) -> set[str]:
        names = {name for hierarchy in self.hierarchies for name in hierarchy.controllers}
        found = {f"cgroup_{name}" for name in ("memory", "pids", "cpu", "cpuset") if name in names}
        found |= {"cgroup_freezer"} if self.freezer is not None else set()
        return found | ({"swap_limit"} if self.has_swap_limit and "memory" in names else set())

    def hierarchy(self, controller: str) -> Hierarchy | None:
        for hierarchy in self.hierarchies:
            if controller in hierarchy.controllers:
                return hierarchy
        return None

    def clean(self) -> None:
        """Removes groups that an earlier life of the service left. Its processes are gone."""
        for hierarchy in self.hierarchies:
            for entry in folders(".", hierarchy.parent):
                _remove_tree(hierarchy.parent, entry)

    # --- groups

    @property
    @abstractmethod
    def group_mounts(self) -> list[GroupMount]:
        """Which of its own groups a sandbox sees, and where."""

    def make_group(self, hierarchy: Hierarchy, path: str) -> None:
        os.mkdir(path, dir_fd=hierarchy.parent)
        self.living_groups += "memory" in hierarchy.controllers

    def remove_group(self, hierarchy: Hierarchy, path: str) -> bool:
        """Removes a group. Returns whether it is gone."""
        try:
            os.rmdir(path, dir_fd=hierarchy.parent)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # EBUSY: a process of it is not reaped yet
        if "memory" in hierarchy.controllers:
            self.living_groups -= 1
            self.removed_groups += 1
        return True

    def open_join(self, hierarchy: Hierarchy, path: str) -> int:
        return os.open(f"{path}/{self.join_file}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=hierarchy.parent)

    def worker_path(self, payload: str) -> str:
        """Where the worker of that payload has its cpu time."""
        return f"{WORKERS}/{payload}"

    def path_of(self, group: str | None) -> str:
        """The end of the path of a sandbox's group, or of the group of all workers."""
        return f"/{self._parent}/{group or WORKERS}"

    # --- all workers

    def make_workers_group(self, most: int) -> None:
        """Makes the group of all workers, with room for `most` of them, and opens the way into it.

        The limits are wide, and honest workers never reach them: a worker has one thread and about 1 MiB. They are for
        a worker that was taken over. It could otherwise do here what its commands may not do in their group.
        """
        for hierarchy in self.hierarchies:
            if hierarchy.cpuset_only:
                continue
            self.make_group(hierarchy, WORKERS)
            if "pids" in hierarchy.controllers:
                write(f"{WORKERS}/pids.max", hierarchy.parent, str(2 * most + 16))
            if "memory" in hierarchy.controllers:
                self.limit_workers_memory((256 + 4 * most) * 1024 * 1024)
            if "cpu" in hierarchy.controllers:
                self.prefer_workers()
            hierarchy.workers = self.open_join(hierarchy, WORKERS)

    @abstractmethod
    def limit_workers_memory(self, size: int) -> None:
        """In bytes, and none of it in swap."""

    @abstractmethod
    def prefer_workers(self) -> None:
        """They get cpu time before commands, and each may have a group of its own below."""

    # --- limits

    @abstractmethod
    def limit_memory(self, path: str, size: int) -> None:
        """In bytes, swap included."""

    @abstractmethod
    def memory_limit(self, path: str) -> int:
        """In bytes; 0: none."""

    @abstractmethod
    def limit_cpu(self, path: str, millis: int) -> None:
        """In thousandths of a cpu."""

    @abstractmethod
    def cpu_limit(self, path: str) -> int: ...

    # --- processors

    @abstractmethod
    def usable_cpus(self) -> list[int]:
        """The processors that the groups of this service may use now."""

    @abstractmethod
    def limit_cpus(self, path: str, cpus: str) -> None:
        """A list such as `0-3,8`, cpuset(7). No process of the group can run elsewhere, whatever it asks for."""

    # --- executions

    @abstractmethod
    def hand_down(self, path: str) -> None:
        """The group gets children with controllers of their own, and has no processes itself any more."""

    @abstractmethod
    def cpu_ns(self, path: str) -> int | None:
        """Returns None where the host does not tell, as the next two do."""

    @abstractmethod
    def memory_bytes(self, path: str) -> int | None:
        """What is used now."""

    @abstractmethod
    def peak_bytes(self, path: str, most: int) -> int | None:
        """`most`: the limit of the sandbox."""

    def processes(self, path: str) -> list[int]:
        """Of an execution, as the kernel lists them now. None of a group that is gone."""
        for hierarchy in self.hierarchies:
            if hierarchy.accounts:
                return pids(path, hierarchy.parent)
        return []

    def kill(self, path: str, worker: int) -> None:
        """All of an execution but the worker, which is in its group while it starts the command. They may fork no more,
        so no fork bomb outruns it."""
        found = self.processes(path)
        if counted := self.hierarchy("pids"):
            write_if_there(f"{path}/pids.max", counted.parent, "0")  # an earlier round may have taken it away
        kill_each([pid for pid in found if pid != worker], lambda: self.processes(path))

    @abstractmethod
    def oom_kills(self, path: str) -> int:
        """How many of its processes the kernel has killed for memory."""

    @abstractmethod
    def oom_events(self, path: str) -> OomEvents | None:
        """None: this host cannot tell."""

    # --- the freezer

    @property
    @abstractmethod
    def freezer(self) -> Hierarchy | None:
        """The hierarchy in which a sandbox can be frozen."""

    @abstractmethod
    def freeze(self, path: str) -> None: ...

    @abstractmethod
    def thaw(self, path: str) -> None: ...

    @abstractmethod
    def is_frozen(self, path: str) -> bool: ...

    @abstractmethod
    def kill_frozen(self, path: str) -> None:
        """What must be killed before a thaw, so that it does not run on."""

    @abstractmethod
    def release(self, killed: list[int]) -> None:
        """Lets some of these frozen processes, which were killed, end while the others stay frozen."""

    @abstractmethod
    def end_frozen(self) -> None:
        """Ends what a launcher that was killed left frozen."""

    # --- memory groups that were removed and stay

    @abstractmethod
    def dead_groups(self) -> int: ...

    @abstractmethod
    def drop_pages(self, at: int) -> None:
        """Of all groups in the folder `at`, as many as can be dropped."""


def quota_us(millis: int) -> int:
    """Of a period; `millis`: thousandths of a cpu. The kernel takes 1 ms at least."""
    return max(1000, millis * PERIOD_US // 1000)


def _remove_tree(at: int, path: str) -> None:
    """Depth first; a group whose processes are just dying answers EBUSY and stays for the next sweep."""
    for name in folders(path, at):
        _remove_tree(at, f"{path}/{name}")
    os.rmdir(path, dir_fd=at)
