"""The control groups of one sandbox: its limits, and one child per execution."""

from __future__ import annotations

import errno
import os

from app.launcher.daemon.cgroup import WORKER_CPU_MILLIS, CgroupTree, Hierarchy, OomEvents
from app.launcher.daemon.cgroup_files import list_of, number_of, read, write
from app.launcher.daemon.usage import Figures, all_pids


class Usage:
    """What one execution has used so far: nanoseconds, bytes, kills by the kernel, whether a process of it lives."""

    __slots__ = ("alive", "cpu_ns", "ooms", "peak_bytes")

    def __init__(self, cpu_ns: int, peak_bytes: int, ooms: int, alive: bool) -> None:
        self.cpu_ns, self.peak_bytes, self.ooms, self.alive = cpu_ns, peak_bytes, ooms, alive


class Groups:
    """The groups of one sandbox. `make` makes them. `remove` closes and removes everything."""

    def __init__(self, tree: CgroupTree, name: str) -> None:
        self._tree, self.name = tree, name
        self._shared: list[int] = []  # where commands join the payload itself, as no child of it is needed
        self._executions: dict[int, None] = {}
        self._memory_bytes = self._cpu_millis = 0  # the payload's limits
        self.processes_files: list[int] = []  # version 2: pids.max and pids.current, for the worker's starts
        self._homes: dict[Hierarchy, str] = {}  # where the worker lives, if not in the group of all workers
        self._home_joins: dict[Hierarchy, int] = {}
        self.join_descriptors: list[int] = []  # where the worker joins the payload for a moment; not to be closed
        self._handed_down = False  # version 2: the payload's controllers, to its executions
        self.oom_events: OomEvents | None = None  # None: the host cannot tell

    @property
    def worker_group(self) -> list[int]:
        """The descriptor by which the worker leaves the limits. It must not be closed."""
        left = [hierarchy for hierarchy in self._tree.hierarchies if not hierarchy.cpuset_only]
        return [self._home_joins.get(hierarchy, hierarchy.workers) for hierarchy in left]

    def make(self) -> None:
        """Makes the groups, without limits. Raises OSError. Then `remove` removes what was made."""
        for hierarchy in self._tree.hierarchies:
            self._tree.make_group(hierarchy, self.name)
            self._choose_home(hierarchy, self.name)
            self.join_descriptors.append(self._tree.open_join(hierarchy, self.name))
            if not hierarchy.accounts and not hierarchy.cpuset_only:
                self._shared.append(self._tree.open_join(hierarchy, self.name))

    def _choose_home(self, hierarchy: Hierarchy, payload: str) -> None:
        at = hierarchy.parent
        if hierarchy.cpuset_only:
            self._homes[hierarchy] = payload
        elif hierarchy.controllers == ("pids",):
            # The worker is in an execution's group while it spawns. It lives in the payload, where it counts always and
            # the limit is one more, so that a command's first fork does not find it still counted.
            self._settle(hierarchy, payload)
        elif "pids" in hierarchy.controllers:
            for name, access in (("pids.max", os.O_WRONLY), ("pids.current", os.O_RDONLY)):
                self.processes_files.append(os.open(f"{payload}/{name}", access | os.O_CLOEXEC, dir_fd=at))
        if "cpu" in hierarchy.controllers:
            own = self._tree.worker_path(payload)
            self._tree.make_group(hierarchy, own)
            self._settle(hierarchy, own)

    def limit(self, memory_bytes: int, processes: int, cpu_millis: int) -> None:
        """Sets the limits, while the worker builds the sandbox and nothing else runs there. Raises OSError."""
        self._memory_bytes, self._cpu_millis = memory_bytes, cpu_millis
        if self._tree.hierarchy("memory"):
            self._tree.limit_memory(self.name, memory_bytes)
        if pids := self._tree.hierarchy("pids"):
            write(f"{self.name}/pids.max", pids.parent, str(processes + (self._homes.get(pids) == self.name)))
        if cpu := self._tree.hierarchy("cpu"):
            self._tree.limit_cpu(self.name, cpu_millis)
            self._tree.limit_cpu(self._homes[cpu], WORKER_CPU_MILLIS)
        self.oom_events = self._tree.oom_events(self.name)

    def _settle(self, hierarchy: Hierarchy, path: str) -> None:
        """The worker lives there, in a group that exists."""
        self._homes[hierarchy] = path
        self._home_joins[hierarchy] = self._tree.open_join(hierarchy, path)

    def limit_cpus(self, cpus: list[int]) -> None:
        """From now on it runs on these processors only. Raises OSError. Call it while the worker sleeps: to move a
        process that runs took up to 4 ms on a busy host (measured).

        The worker's own group has them too, so that nobody is moved when the worker starts a command."""
        hierarchy = self._tree.hierarchy("cpuset")
        if hierarchy is not None:
            for path in {self.name, self._homes.get(hierarchy, self.name)}:
                self._tree.limit_cpus(path, list_of(cpus))

    def limits_in_force(self) -> dict[str, int]:
        """The limits as read back from the kernel: bytes, processes, thousandths of a cpu. 0 for a limit that is not
        set."""
        found: dict[str, int] = {}
        payload = self.name
        if self._tree.hierarchy("memory"):
            found["memory_bytes"] = self._tree.memory_limit(payload)
        if pids := self._tree.hierarchy("pids"):
            found["processes"] = number_of(read(f"{payload}/pids.max", pids.parent)) - (
                self._homes.get(pids) == payload
            )
        if cpu := self._tree.hierarchy("cpu"):
            found["cpu_millis"] = self._tree.cpu_limit(payload)
            found["worker_cpu_millis"] = self._tree.cpu_limit(self._homes[cpu])
        return found

    def not_with_workers(self, membership: dict[str, str]) -> list[str]:
        """Returns the controllers in whose tree a process with this membership (controller -> path) is not in the group
        of this sandbox's worker."""
        wrong: list[str] = []
        for hierarchy in self._tree.hierarchies:
            end = self._tree.path_of(self._homes.get(hierarchy))
            wrong += [n for n in hierarchy.controllers if not membership.get(n, membership.get("", "")).endswith(end)]
        return sorted(wrong)

    # --- executions

    def open_execution(self, number: int) -> list[int]:
        """Makes the execution's groups. Returns descriptors to enter them and the payload, which the caller has to
        close. Raises OSError, and then leaves no group."""
        joins = [os.dup(descriptor) for descriptor in self._shared]
        self._executions[number] = None
        try:
            self._hand_down()
            for hierarchy in self._tree.hierarchies:
                if hierarchy.accounts:
                    path = self._path(number)
                    self._tree.make_group(hierarchy, path)
                    self._show_limits(hierarchy, path)
                    joins.append(self._tree.open_join(hierarchy, path))
        except OSError:
            for descriptor in joins:
                os.close(descriptor)
            self.remove_execution(number)
            raise
        return joins

    def _show_limits(self, hierarchy: Hierarchy, path: str) -> None:
        """The sandbox's limits on an execution. A program reads its limits in its own group and not in those above."""
        if "memory" in hierarchy.controllers:
            self._tree.limit_memory(path, self._memory_bytes)
        if "cpu" in hierarchy.controllers:
            self._tree.limit_cpu(path, self._cpu_millis)

    def limit_execution(self, number: int, memory_bytes: int) -> None:
        """Of one that was opened and has no process yet. Raises OSError, also where the host has no such limit."""
        if self._tree.hierarchy("memory") is None:
            raise OSError(errno.ENOTSUP, "the host has no memory controller")
        self._tree.limit_memory(self._path(number), memory_bytes)

    @property
    def can_count_cpu(self) -> bool:
        """Whether the processor time of an execution is known."""
        return self._tree.cpu_ns(self.name) is not None

    def _hand_down(self) -> None:
        """Not before the worker is ready, which was in the payload for a moment."""
        if not self._handed_down:
            self._tree.hand_down(self.name)
            self._handed_down = True

    def _path(self, number: int) -> str:
        return f"{self.name}/{number}"

    def usage(self, number: int) -> Usage:
        """Zeros for groups that are gone."""
        path = self._path(number)
        try:
            cpu_ns, peak_bytes = self._tree.cpu_ns(path), self._tree.peak_bytes(path, self._memory_bytes)
        except FileNotFoundError:
            return Usage(0, 0, 0, False)
        return Usage(cpu_ns or 0, peak_bytes or 0, self.oom_kills(number), bool(self.alive(number)))

    def figures(self, number: int) -> Figures:
        """Of one execution; 0 is the whole sandbox. Raises OSError when it is gone."""
        if number:
            return Figures(self._tree, self._path(number), self._memory_bytes, self.alive(number))
        counted = self._tree.hierarchy("pids")
        with_worker = counted is not None and self._homes.get(counted) == self.name
        alive = all_pids(self._tree, [self._path(execution) for execution in self._executions])
        return Figures(self._tree, self.name, self._memory_bytes, alive, workers=int(with_worker))

    def oom_kills(self, number: int) -> int:
        """Kills of this execution so far. 0 when its groups are gone."""
        try:
            return self._tree.oom_kills(self._path(number))
        except FileNotFoundError:
            return 0

    @property
    def can_kill(self) -> bool:
        """Whether an execution's processes can be told from others'."""
        return any(hierarchy.accounts for hierarchy in self._tree.hierarchies)

    def alive(self, number: int) -> list[int]:
        """The execution's processes, as the kernel lists them now."""
        return self._tree.processes(self._path(number))

    def kill_execution(self, number: int, worker: int) -> bool:
        """Kills in one round. Returns True when no process of the execution is left. A fork bomb cannot outrun it, as
        it may not fork any more. The worker is in the group while it starts the command, and is not killed."""
        self._tree.kill(self._path(number), worker)
        return not set(self.alive(number)) - {worker}

    def remove_execution(self, number: int) -> bool:
        """Removes the execution's groups. Returns True when nothing of it is left. While one group is busy, the others
        stay too, as they belong together."""
        for hierarchy in self._tree.hierarchies:
            if hierarchy.accounts and not self._tree.remove_group(hierarchy, self._path(number)):
                return False
        self._executions.pop(number, None)
        return True

    # --- the end

    def close(self) -> None:
        """Closes the descriptors that only the worker needs."""
        for descriptor in (*self._home_joins.values(), *self.join_descriptors, *self.processes_files):
            os.close(descriptor)
        self.processes_files.clear()
        self._home_joins.clear()
        self.join_descriptors.clear()

    def remove(self) -> bool:
        """Removes the groups. Returns True when nothing of the sandbox is left, False while a process of it is not
        reaped yet."""
        self.close()
        if self.oom_events is not None:
            self.oom_events.close()
            self.oom_events = None
        for descriptor in self._shared:
            os.close(descriptor)
        self._shared.clear()
        gone = True
        for number in tuple(self._executions):
            gone = self.remove_execution(number) and gone
        for hierarchy in self._tree.hierarchies:
            gone = self._tree.remove_group(hierarchy, self.name) and gone
            if "cpu" in hierarchy.controllers:
                gone = self._tree.remove_group(hierarchy, self._tree.worker_path(self.name)) and gone
        return gone
