"""The host's control groups, version 1 or 2, and this instance's place in them.

::

    <parent>/_workers         every worker, outside of all limits: an out-of-memory kill never takes one
    <parent>/_workers/<sandbox>   its worker's cpu time, which has a limit of its own
    <parent>/<sandbox>        the limits                                            (groups.py)
    <parent>/<sandbox>/<n>    one execution: its kill list, cpu time, peak memory and out-of-memory count

A process enters a group by writing 0 to a descriptor that root opened: on version 1 to `tasks` (one thread moves
itself: 20 to 55 us measured; `cgroup.procs` takes a global lock and an RCU grace period: 10.8 ms), on version 2 to
`cgroup.procs`. The kernel checks the opener's credentials, so only the worker gets such a descriptor.

On version 1 each controller may be a tree of its own, and a group in one costs 30 to 90 us to make and remove. So an
execution has a group only in the trees that count something for it: memory, pids and cpuacct. A sandbox has a group in
every tree, as the root of its cgroup namespace. Its limits come from memory, pids and cpu, and it is frozen as a whole
(freezer.py).
"""

from __future__ import annotations

import os

CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "freezer")
PERIOD_US = 100_000
ENABLE = "+cpu +memory +pids"
# Version 1 leaves the buffers of UDP and TCP sockets out of the memory limit: 1.3 GiB on its own loopback, measured,
# and more until `udp_mem` of the whole host is used up. They have a limit of their own, which counts for a group only
# once it was written there. Version 2 charges them to the memory limit.
_SOCKET_LIMIT, SOCKET_BYTES = "memory.kmem.tcp.limit_in_bytes", 32 * 1024 * 1024
# For each worker: a start and an end take 0.3 ms. One limit for all workers would let one sandbox that keeps its worker
# busy hold up those of all others.
WORKER_CPU_MILLIS = 200
_SERVICE = "service"
_WORKERS = "_workers"  # no sandbox id begins with _


def read(path: str, at: int) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        return os.read(descriptor, 65536).decode()
    finally:
        os.close(descriptor)


def write(path: str, at: int, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def has(path: str, at: int) -> bool:
    try:
        os.stat(path, dir_fd=at)
    except FileNotFoundError:
        return False
    return True


def number_of(text: str) -> int:
    """Reads a number. `max` (no limit) becomes 0, as no limit is below one."""
    return 0 if text.strip() == "max" else int(text)


def field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def pids(path: str, at: int) -> list[int]:
    """All processes of a group. One read may end in the middle of a number, so it reads to the end. A group that is
    gone has none."""
    try:
        descriptor = os.open(path + "/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    except FileNotFoundError:
        return []
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
    """One mounted tree: its controllers, this service's folder in it, and the group of the workers."""

    __slots__ = ("accounts", "controllers", "parent", "workers")

    def __init__(self, controllers: tuple[str, ...], parent: int) -> None:
        self.controllers, self.parent = controllers, parent
        self.workers = -1  # to join them
        self.accounts = bool({"memory", "pids", "cpuacct"} & set(controllers))


def locate(mountinfo: str, membership: str) -> tuple[int, list[tuple[tuple[str, ...], str]]]:
    """(version, [(controllers, folder of our own group)]) from /proc/self/mountinfo and /proc/self/cgroup.

    It is version 2 where the unified tree has the controllers, and version 1 otherwise. A hybrid host mounts an empty
    version 2 tree beside the version 1 ones, so the files that exist decide and not the file systems.
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
            # Once we moved ourselves into the leaf (`_delegate`) the group that is ours is the one above it.
            unified = _below(target, root, own.get("", "/")).removesuffix("/" + _SERVICE)
    if unified:
        with_controllers = _available(unified)
        if {"memory", "pids", "cpu"} <= with_controllers:
            return 2, [(("memory", "pids", "cpu"), unified)]
        if all(names == ("freezer",) for names, _ in first):
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


class CgroupTree:
    """This service's part of the host's control groups."""

    def __init__(self, version: int, parent: str, hierarchies: list[Hierarchy], has_swap_limit: bool) -> None:
        self.version, self.hierarchies, self.has_swap_limit = version, hierarchies, has_swap_limit
        self._parent = parent
        self.living_groups = self.removed_groups = 0  # memory groups of sandboxes and executions: there, and gone

    @property
    def layers(self) -> set[str]:
        names = {name for hierarchy in self.hierarchies for name in hierarchy.controllers}
        found = {f"cgroup_{name}" for name in ("memory", "pids", "cpu") if name in names}
        found |= {"cgroup_freezer"} if self.freezer is not None else set()
        return found | ({"swap_limit"} if self.has_swap_limit and "memory" in names else set())

    @property
    def freezer(self) -> Hierarchy | None:
        """The hierarchy in which a sandbox can be frozen. Every group of version 2 can be, since Linux 5.2."""
        if self.version == 1:
            return self.hierarchy("freezer")
        return next(iter(self.hierarchies), None)

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

    def house_workers(self, most: int) -> None:
        """Makes the group of all workers, with room for `most` of them, and opens the way into it. Raises OSError.

        The limits are wide, and honest workers never reach them: a worker has one thread and about 1 MiB. They are for
        a worker that was taken over. It could otherwise do here what its commands may not do in their group.
        """
        for hierarchy in self.hierarchies:
            os.mkdir(_WORKERS, dir_fd=hierarchy.parent)
            if "pids" in hierarchy.controllers:
                write(f"{_WORKERS}/pids.max", hierarchy.parent, str(2 * most + 16))
            if "memory" in hierarchy.controllers:
                name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
                write(f"{_WORKERS}/{name}", hierarchy.parent, str((256 + 4 * most) * 1024 * 1024))
                swapping = "memory.swappiness" if self.version == 1 else f"{_WORKERS}/memory.swap.max"
                if has(swapping, hierarchy.parent):  # on version 1 every group below inherits it
                    write(swapping, hierarchy.parent, "0")
            weight, most = ("cpu.shares", 10_240) if self.version == 1 else ("cpu.weight", 1000)
            if "cpu" in hierarchy.controllers and has(f"{_WORKERS}/{weight}", hierarchy.parent):
                write(f"{_WORKERS}/{weight}", hierarchy.parent, str(most))  # they come before commands
            if self.version == 2 and "cpu" in hierarchy.controllers:  # from now on only its children hold processes
                write(f"{_WORKERS}/cgroup.subtree_control", hierarchy.parent, "+cpu")
            hierarchy.workers = self.open_join(hierarchy, _WORKERS)

    def make_group(self, hierarchy: Hierarchy, path: str) -> None:
        """Raises OSError."""
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

    def worker_path(self, payload: str) -> str:
        """Where the worker of that room has its cpu time."""
        return f"{_WORKERS}/{payload}"

    def path_of(self, group: str | None) -> str:
        """The end of the path of a sandbox's group, or of the group of all workers."""
        return f"/{self._parent}/{group or _WORKERS}"

    def open_join(self, hierarchy: Hierarchy, path: str) -> int:
        name = "tasks" if self.version == 1 else "cgroup.procs"
        return os.open(f"{path}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=hierarchy.parent)


def folders(path: str, at: int) -> list[str]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    try:
        return [entry.name for entry in os.scandir(descriptor) if entry.is_dir(follow_symlinks=False)]
    finally:
        os.close(descriptor)


def _remove_tree(at: int, path: str) -> None:
    """Depth first; a group whose processes are just dying answers EBUSY and stays for the next sweep."""
    for name in folders(path, at):
        _remove_tree(at, f"{path}/{name}")
    os.rmdir(path, dir_fd=at)


def open_tree(parent: str) -> CgroupTree:
    """Makes `parent` below the service's own group in every hierarchy and opens it. A layer that the host lacks is not
    in `layers`. Code that needs it refuses."""
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
                count_sockets(".", descriptor)  # now, as the first group of a host that does so patches the kernel
    return CgroupTree(version, parent, hierarchies, has_swap_limit)


def count_sockets(path: str, at: int, most: int = -1) -> None:
    """On version 1, makes the kernel count the buffers of sockets that the group's processes open from now on (-1:
    without a limit)."""
    if has(f"{path}/{_SOCKET_LIMIT}", at):  # kernels announce since 6.12 to give it up
        write(f"{path}/{_SOCKET_LIMIT}", at, str(most))


def can_limit_swap(version: int, parent: int) -> bool:
    name = "memory.memsw.limit_in_bytes" if version == 1 else "memory.swap.max"
    if not has(name, parent):
        # Version 2 without swap accounting built in: a host that has no swap device needs no limit on it.
        with open("/proc/swaps") as file:
            return len(file.read().splitlines()) <= 1
    return True


def _delegate(folder: str, parent: str) -> None:
    """Version 2 hands controllers down only through groups that hold no process, so ours move to a leaf first."""
    if os.path.exists(folder + "/cgroup.type"):  # the root group has no such file, and may hold processes
        os.makedirs(f"{folder}/{_SERVICE}", exist_ok=True)
        with open(folder + "/cgroup.procs") as file:
            for pid in file.read().split():
                with open(f"{folder}/{_SERVICE}/cgroup.procs", "w") as target:
                    target.write(pid)
    path = folder
    for part in ("", *parent.split("/")):
        path = f"{path}/{part}".rstrip("/")
        os.makedirs(path, exist_ok=True)
        with open(path + "/cgroup.subtree_control", "w") as file:
            file.write(ENABLE)
