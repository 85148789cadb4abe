"""Resource control: one group per sandbox, one child per execution, on cgroup version 1 or 2.

::

    <parent>/<sandbox>            version 1: the worker, outside the limits
    <parent>/<sandbox>/worker     version 2: the same (a group with children must not hold processes)
    <parent>/<sandbox>/room       the limits
    <parent>/<sandbox>/room/<n>   one execution: its kill list, cpu time, peak memory and out-of-memory count

Joining is always "the caller writes 0 to a descriptor that root opened": on version 1 to `tasks` (one thread moves
itself: 20 to 55 us measured; `cgroup.procs` takes a global lock and an RCU grace period: 10.8 ms), on version 2 to
`cgroup.procs`. The kernel checks the opener's credentials, so such a descriptor goes to the worker and to nobody else.
"""

from __future__ import annotations

import os

from app.launcher.syscalls import kill_by_pidfd

CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
PERIOD_US = 100_000
_ENABLE = "+cpu +memory +pids"
# Version 1 leaves the buffers of UDP and TCP sockets out of the memory limit: 1.3 GiB on its own loopback, measured,
# and more until `udp_mem` of the whole host is used up. They have a limit of their own, which counts for a group only
# once it was written there. Version 2 charges them to the memory limit.
_SOCKET_LIMIT, _SOCKET_BYTES = "memory.kmem.tcp.limit_in_bytes", 32 * 1024 * 1024


class Usage:
    """What one execution has used so far: nanoseconds, bytes, kills by the kernel, whether a process of it lives."""

    __slots__ = ("alive", "cpu_ns", "ooms", "peak_bytes")

    def __init__(self, cpu_ns: int, peak_bytes: int, ooms: int, alive: bool) -> None:
        self.cpu_ns, self.peak_bytes, self.ooms, self.alive = cpu_ns, peak_bytes, ooms, alive


def _read(path: str, at: int) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        return os.read(descriptor, 65536).decode()
    finally:
        os.close(descriptor)


def _write(path: str, at: int, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _number(text: str) -> int:
    """`max` (no limit) is 0: nobody asks for less than one."""
    return 0 if text.strip() == "max" else int(text)


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _pids(path: str, at: int) -> list[int]:
    """A whole group's processes, however many: one read may end in the middle."""
    descriptor = os.open(path + "/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        text = b""
        while piece := os.read(descriptor, 65536):
            text += piece
    except OSError:
        return []  # ENODEV: the group was removed meanwhile
    finally:
        os.close(descriptor)
    return [int(line) for line in text.split()]


class Hierarchy:
    """One mounted tree and the controllers that it has; `parent` is a descriptor of this instance's own folder."""

    __slots__ = ("controllers", "parent")

    def __init__(self, controllers: tuple[str, ...], parent: int) -> None:
        self.controllers, self.parent = controllers, parent


def locate(mountinfo: str, membership: str) -> tuple[int, list[tuple[tuple[str, ...], str]]]:
    """(version, [(controllers, folder of our own group)]) from /proc/self/mountinfo and /proc/self/cgroup.

    Version 2 where the unified tree has the controllers, version 1 otherwise: a hybrid host mounts an empty version 2
    tree beside the version 1 ones, so which files exist decides, not which file systems.
    """
    own: dict[str, str] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(",") if names else ("",):
            own[name] = path
    first: list[tuple[tuple[str, ...], str]] = []
    unified = ""
    for line in mountinfo.splitlines():  # proc_pid_mountinfo(5)
        fields = line.split(" ")
        dash = fields.index("-")
        root, target, kind, options = fields[3], fields[4], fields[dash + 1], fields[dash + 3].split(",")
        if kind == "cgroup":
            here = tuple(name for name in CONTROLLERS if name in options)
            if here and all(here != seen for seen, _ in first):
                first.append((here, _below(target, root, own.get(here[0], "/"))))
        elif kind == "cgroup2" and not unified:
            unified = _below(target, root, own.get("", "/"))
    if unified:
        with_controllers = _available(unified)
        if {"memory", "pids", "cpu"} <= with_controllers:
            return 2, [(("memory", "pids", "cpu"), unified)]
        if not first:
            return 2, [(tuple(sorted(with_controllers & set(CONTROLLERS))), unified)]
    return 1, first


def _below(target: str, root: str, own: str) -> str:
    relative = own[len(root) :] if root != "/" and own.startswith(root) else own
    return (target + "/" + relative.strip("/")).rstrip("/")


def _available(folder: str) -> set[str]:
    try:
        with open(folder + "/cgroup.controllers") as file:
            return set(file.read().split())
    except OSError:
        return set()


class Tree:
    """This instance's part of the host's control groups."""

    def __init__(self, version: int, hierarchies: list[Hierarchy], has_swap_limit: bool) -> None:
        self.version, self.hierarchies, self.has_swap_limit = version, hierarchies, has_swap_limit

    @property
    def layers(self) -> set[str]:
        names = {name for hierarchy in self.hierarchies for name in hierarchy.controllers}
        found = {f"cgroup_{name}" for name in ("memory", "pids", "cpu") if name in names}
        return found | ({"swap_limit"} if self.has_swap_limit and "memory" in names else set())

    def hierarchy(self, controller: str) -> Hierarchy | None:
        for hierarchy in self.hierarchies:
            if controller in hierarchy.controllers:
                return hierarchy
        return None

    def clean(self) -> None:
        """Removes what an earlier life left: its processes are gone, its folders may not be."""
        for hierarchy in self.hierarchies:
            for name in os.listdir(hierarchy.parent):
                if os.path.isdir(f"/proc/self/fd/{hierarchy.parent}/{name}"):
                    _remove_tree(hierarchy.parent, name)

    @property
    def join_file(self) -> str:
        return "tasks" if self.version == 1 else "cgroup.procs"


def _remove_tree(at: int, path: str) -> None:
    """Depth first; a group whose processes are just dying answers EBUSY and stays for the next sweep."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    try:
        names = [entry.name for entry in os.scandir(descriptor) if entry.is_dir(follow_symlinks=False)]
    finally:
        os.close(descriptor)
    for name in names:
        _remove_tree(at, f"{path}/{name}")
    os.rmdir(path, dir_fd=at)


def open_tree(parent: str) -> Tree:
    """Makes `parent` below our own group in every hierarchy and opens it. What the host lacks is simply not in
    `layers`; whoever needs it refuses."""
    with open("/proc/self/mountinfo") as file:
        mountinfo = file.read()
    with open("/proc/self/cgroup") as file:
        membership = file.read()
    version, places = locate(mountinfo, membership)
    hierarchies: list[Hierarchy] = []
    has_swap_limit = False
    for controllers, folder in places:
        try:
            if version == 2:
                _delegate(folder, parent)
            os.makedirs(f"{folder}/{parent}", exist_ok=True)
            descriptor = os.open(f"{folder}/{parent}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # read-only or not ours: the layer is missing, and `layers` says so
        hierarchies.append(Hierarchy(controllers, descriptor))
        if "memory" in controllers:
            has_swap_limit = can_limit_swap(version, descriptor)
            if version == 1:
                _count_sockets(".", descriptor)  # now, as the first group of a host that does so patches the kernel
    return Tree(version, hierarchies, has_swap_limit)


def _count_sockets(path: str, at: int, most: int = -1) -> None:
    """Version 1: the buffers of the sockets that the group's processes open from now on are counted (-1: only that)."""
    try:
        _write(f"{path}/{_SOCKET_LIMIT}", at, str(most))
    except FileNotFoundError:
        pass  # a kernel that gave it up; it announces to do so since 6.12


def can_limit_swap(version: int, parent: int) -> bool:
    name = "memory.memsw.limit_in_bytes" if version == 1 else "memory.swap.max"
    try:
        os.stat(name, dir_fd=parent)
    except FileNotFoundError:
        # Version 2 without swap accounting built in: a host that has no swap device needs no limit on it.
        with open("/proc/swaps") as file:
            return len(file.read().splitlines()) <= 1
    return True


def _delegate(folder: str, parent: str) -> None:
    """Version 2 hands controllers down only through groups that hold no process, so ours move to a leaf first."""
    if os.path.exists(folder + "/cgroup.type"):  # the root group has no such file, and may hold processes
        os.makedirs(folder + "/service", exist_ok=True)
        with open(folder + "/cgroup.procs") as file:
            for pid in file.read().split():
                with open(folder + "/service/cgroup.procs", "w") as target:
                    target.write(pid)
    path = folder
    for part in ("", *parent.split("/")):
        path = f"{path}/{part}".rstrip("/")
        os.makedirs(path, exist_ok=True)
        with open(path + "/cgroup.subtree_control", "w") as file:
            file.write(_ENABLE)


class Room:
    """The groups of one sandbox. Made by `make`; everything it opened or made goes with `remove`."""

    def __init__(self, tree: Tree, name: str) -> None:
        self.tree, self.name = tree, name
        self.home: list[int] = []  # the worker writes 0 here to be outside the limits
        self.processes_file = -1  # the room's pids.max, for the worker's spawn (see worker.py)
        self._executions: dict[int, None] = {}

    def make(self, memory_bytes: int, processes: int, cpu_millis: int) -> None:
        """Raises OSError; then `remove` takes back what was made."""
        suffix = "" if self.tree.version == 1 else "/worker"
        for hierarchy in self.tree.hierarchies:
            at, room = hierarchy.parent, f"{self.name}/room"
            os.mkdir(self.name, dir_fd=at)
            if self.tree.version == 2:
                os.mkdir(self.name + suffix, dir_fd=at)
                _write(f"{self.name}/cgroup.subtree_control", at, _ENABLE)
            os.mkdir(room, dir_fd=at)
            self._limit(hierarchy, room, memory_bytes, processes, cpu_millis)
            self.home.append(self._open_join(hierarchy, self.name + suffix))

    def _limit(self, hierarchy: Hierarchy, room: str, memory_bytes: int, processes: int, cpu_millis: int) -> None:
        at, quota = hierarchy.parent, max(1000, cpu_millis * PERIOD_US // 1000)
        if "memory" in hierarchy.controllers:
            first = self.tree.version == 1
            _write(f"{room}/memory.limit_in_bytes" if first else f"{room}/memory.max", at, str(memory_bytes))
            if first:
                _count_sockets(room, at, _SOCKET_BYTES)
            if self.tree.has_swap_limit:
                name, value = ("memory.memsw.limit_in_bytes", memory_bytes) if first else ("memory.swap.max", 0)
                try:
                    _write(f"{room}/{name}", at, str(value))
                except FileNotFoundError:
                    pass  # version 2, no swap accounting and no swap: see can_limit_swap
        if "pids" in hierarchy.controllers:
            _write(f"{room}/pids.max", at, str(processes))
            self.processes_file = os.open(f"{room}/pids.max", os.O_WRONLY | os.O_CLOEXEC, dir_fd=at)
        if "cpu" in hierarchy.controllers:
            if self.tree.version == 1:
                _write(f"{room}/cpu.cfs_quota_us", at, str(quota))
            else:
                _write(f"{room}/cpu.max", at, f"{quota} {PERIOD_US}")
        if self.tree.version == 2:
            _write(f"{room}/cgroup.subtree_control", at, _ENABLE)

    def _open_join(self, hierarchy: Hierarchy, path: str) -> int:
        return os.open(f"{path}/{self.tree.join_file}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=hierarchy.parent)

    def limits_in_force(self) -> dict[str, int]:
        """Read back from the kernel; 0 for a limit that is not set. Bytes, processes, thousandths of a cpu."""
        found: dict[str, int] = {}
        first, room = self.tree.version == 1, f"{self.name}/room"
        if memory := self.tree.hierarchy("memory"):
            found["memory_bytes"] = _number(
                _read(f"{room}/memory.limit_in_bytes" if first else f"{room}/memory.max", memory.parent)
            )
        if pids := self.tree.hierarchy("pids"):
            found["processes"] = _number(_read(f"{room}/pids.max", pids.parent))
        if cpu := self.tree.hierarchy("cpu"):
            text = _read(f"{room}/cpu.cfs_quota_us" if first else f"{room}/cpu.max", cpu.parent)
            found["cpu_millis"] = _number(text.split()[0]) * 1000 // PERIOD_US
        return found

    # --- executions

    def open_execution(self, number: int) -> list[int]:
        """Makes the child groups; returns descriptors to join them, one per hierarchy. Raises OSError, leaves none."""
        joins: list[int] = []
        self._executions[number] = None
        try:
            for hierarchy in self.tree.hierarchies:
                path = f"{self.name}/room/{number}"
                os.mkdir(path, dir_fd=hierarchy.parent)
                if self.tree.version == 2:
                    _write(f"{path}/memory.oom.group", hierarchy.parent, "1")
                elif "memory" in hierarchy.controllers:
                    _count_sockets(path, hierarchy.parent)  # a child does not inherit that it is counted
                joins.append(self._open_join(hierarchy, path))
        except OSError:
            for descriptor in joins:
                os.close(descriptor)
            self.remove_execution(number)
            raise
        return joins

    def usage(self, number: int) -> Usage:
        path, first = f"{self.name}/room/{number}", self.tree.version == 1
        cpu_ns = peak = ooms = 0
        if memory := self.tree.hierarchy("memory"):
            if first:
                peak = int(_read(f"{path}/memory.max_usage_in_bytes", memory.parent))
                ooms = _field(_read(f"{path}/memory.oom_control", memory.parent), "oom_kill")
            else:
                peak = _peak(path, memory.parent)
                ooms = _field(_read(f"{path}/memory.events", memory.parent), "oom_kill")
        if not first and self.tree.hierarchies:
            cpu_ns = _field(_read(f"{path}/cpu.stat", self.tree.hierarchies[0].parent), "usage_usec") * 1000
        elif account := self.tree.hierarchy("cpuacct"):
            cpu_ns = int(_read(f"{path}/cpuacct.usage", account.parent))
        return Usage(cpu_ns, peak, ooms, bool(self._alive(path)))

    def _alive(self, path: str) -> list[int]:
        return _pids(path, self.tree.hierarchies[0].parent) if self.tree.hierarchies else []

    def kill_execution(self, number: int) -> bool:
        """One round; True when no process of it is left. A fork bomb cannot outrun it: it may not fork any more."""
        path = f"{self.name}/room/{number}"
        if self.tree.version == 2:
            at = self.tree.hierarchies[0].parent
            _write(f"{path}/cgroup.kill", at, "1")
            return not _pids(path, at)
        if pids := self.tree.hierarchy("pids"):
            _write(f"{path}/pids.max", pids.parent, "0")
        victims: list[tuple[int, int]] = []
        try:
            for pid in self._alive(path):
                try:
                    victims.append((pid, os.pidfd_open(pid)))
                except ProcessLookupError:
                    continue
            # A pid that is still listed after its pidfd was opened is the one that was meant: without this a number
            # that was used again meanwhile would make root kill a stranger.
            still = set(self._alive(path)) if victims else set()
            for pid, pidfd in victims:
                if pid in still:
                    try:
                        kill_by_pidfd(pidfd, 9)
                    except ProcessLookupError:
                        continue
        finally:
            for _, pidfd in victims:
                os.close(pidfd)
        return not self._alive(path)

    def remove_execution(self, number: int) -> bool:
        """True when nothing of it is left."""
        gone = True
        for hierarchy in self.tree.hierarchies:
            try:
                os.rmdir(f"{self.name}/room/{number}", dir_fd=hierarchy.parent)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False  # EBUSY: a process of it is not reaped yet
        if gone:
            self._executions.pop(number, None)
        return gone

    # --- the end

    def close(self) -> None:
        """The launcher's descriptors; the groups stay."""
        for descriptor in self.home:
            os.close(descriptor)
        self.home = []
        if self.processes_file >= 0:
            os.close(self.processes_file)
            self.processes_file = -1

    def remove(self) -> bool:
        """True when nothing of the sandbox is left; False while a process of it is not reaped yet."""
        self.close()
        for number in tuple(self._executions):
            self.remove_execution(number)
        gone = True
        for hierarchy in self.tree.hierarchies:
            for path in (f"{self.name}/room", f"{self.name}/worker", self.name):
                try:
                    os.rmdir(path, dir_fd=hierarchy.parent)
                except FileNotFoundError:
                    continue
                except OSError:
                    gone = False
        return gone


def _peak(path: str, at: int) -> int:
    try:
        return int(_read(f"{path}/memory.peak", at))  # Linux 5.19
    except FileNotFoundError:
        return 0
