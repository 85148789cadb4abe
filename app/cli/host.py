"""`bulkhead probe`: what this host offers to the runtime `process`, layer by layer, and how to get each missing layer.

It tries everything in a child process that then ends, and does not guess from configuration files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.launcher.daemon import cgroup_mounts, probe
from app.launcher.daemon.cgroup import CgroupTree, Hierarchy
from app.launcher.daemon.disks import try_one
from app.launcher.daemon.loop_storage import LAYER, StorageError, open_loop_storage
from app.launcher.kernel import landlock
from app.launcher.kernel.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    NR_SECCOMP,
    syscall,
    unshare,
)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer of one runtime. `optional`: an operator may accept that it is missing
    (BULKHEAD_PROCESS__ACCEPT_MISSING). `needed`: the service needs it as it is configured."""

    layer: str
    available: bool
    detail: str
    cure: str | None = None
    optional: bool = False
    needed: bool = True
    runtime: str = "process"


_NAMESPACES = (
    ("mount", CLONE_NEWNS),
    ("pid", CLONE_NEWPID),
    ("network", CLONE_NEWNET),
    ("ipc", CLONE_NEWIPC),
    ("uts", CLONE_NEWUTS),
    ("cgroup", CLONE_NEWCGROUP),
)
_SOMEBODY = 65_534  # any uid of the host that is not root's
_KERNEL_CURE = "boot Linux 6.12 or later with CONFIG_SECURITY_LANDLOCK=y and landlock in the lsm= list"


def probe_host(storage_dir: Path, *, disks_needed: bool) -> list[LayerReport]:
    """Every layer, in the order in which a sandbox enters them. `storage_dir` is the folder for disks. `disks_needed`:
    a sandbox has a disk if its request does not say."""
    return [
        _root(),
        _user_namespace(),
        *_namespaces(),
        *_landlock(),
        _seccomp(),
        *_cgroups(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()),
        _loop_storage(storage_dir, disks_needed),
    ]


def _in_child(attempt: Callable[[], object]) -> str:
    """Empty when it worked, else the kernel's word. The attempt's effects die with the child."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        except OSError as error:
            os.write(write, (error.strerror or str(error)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


def _root() -> LayerReport:
    if os.geteuid() == 0:
        return LayerReport("root", True, "started as root; the gateway gives root up before it listens")
    return LayerReport("root", False, f"started as uid {os.geteuid()}", "start the service with sudo or as a unit")


def _user_namespace() -> LayerReport:
    if probe.can_make_user_namespaces(_SOMEBODY):
        return LayerReport("user_namespace", True, "available", optional=True)
    cure = "raise user.max_user_namespaces above 0; on Ubuntu set kernel.apparmor_restrict_unprivileged_userns=0"
    return LayerReport("user_namespace", False, "the kernel refuses to make one", cure, optional=True)


def _namespaces() -> list[LayerReport]:
    reports = []
    for name, flag in _NAMESPACES:
        refused = _in_child(partial(unshare, flag))
        cure = "start as root (CAP_SYS_ADMIN), in a container that allows unshare" if refused else None
        reports.append(LayerReport(f"{name}_namespace", not refused, refused or "available", cure))
    return reports


def _landlock() -> list[LayerReport]:
    version = landlock.abi()
    wants = (
        ("landlock", version >= 1, f"ABI {version}"),
        ("landlock_tcp", bool(landlock.handled_network(version)), "needs ABI 4 (Linux 6.7)"),
        ("landlock_scopes", bool(landlock.handled_scopes(version)), "needs ABI 6 (Linux 6.12)"),
    )
    return [
        LayerReport(name, there, f"ABI {version}" if there else detail, None if there else _KERNEL_CURE, optional=True)
        for name, there, detail in wants
    ]


def _seccomp() -> LayerReport:
    try:
        syscall(NR_SECCOMP, 2, 0, (0x7FFF0000).to_bytes(4, "little"))  # is the action ALLOW known?
    except OSError as error:
        return LayerReport("seccomp", False, str(error.strerror), "boot a kernel with CONFIG_SECCOMP_FILTER=y")
    return LayerReport("seccomp", True, "filters can be loaded")


def _cgroups(mountinfo: str, membership: str) -> list[LayerReport]:
    version, found = cgroup_mounts.locate(mountinfo, membership)
    kind = cgroup_mounts.KINDS[version]
    places = [((*names, *kind.obtainable(folder)), folder) for names, folder in found]
    writable = {name: os.access(folder, os.W_OK) for names, folder in places for name in names}
    reports = []
    for name in ("memory", "pids", "cpu", "cpuset"):
        there = writable.get(name, False)
        detail = f"version {version}" if there else f"version {version}: missing or not writable"
        cure = None if there else "start as root with a writable cgroup mount (in a unit: Delegate=yes)"
        reports.append(LayerReport(f"cgroup_{name}", there, detail, cure, optional=True))
    usable = [Hierarchy(names, -1) for names, folder in places if names and os.access(folder, os.W_OK)]
    freezes = kind("", usable).freezer is not None
    detail = f"version {version}" if freezes else "missing or not writable, so sandboxes cannot be paused"
    cure = None if freezes else "mount the freezer of version 1 writable, or use version 2"
    reports.append(LayerReport("cgroup_freezer", freezes, detail, cure, needed=False))
    memory = next((folder for names, folder in places if "memory" in names), None)
    swap = memory is not None and _swap_limited(kind, memory)
    cure = None if swap else "boot with swapaccount=1, or swapoff -a"
    reports.append(LayerReport("swap_limit", swap, "in force" if swap else "no memsw limit", cure, optional=True))
    return reports


def _loop_storage(folder: Path, needed: bool) -> LayerReport:
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    reason, cure = _lack_for_disks(str(folder))
    with contextlib.suppress(OSError):
        for place in made:  # it only looks
            place.rmdir()
    detail = f"no sandbox can have a disk: {reason}" if reason else f"disks can be made in {folder}"
    return LayerReport(LAYER, not reason, detail, cure, needed=needed)


def _lack_for_disks(folder: str) -> tuple[str, str | None]:
    """What is in the way of a disk, and what helps."""
    if os.geteuid() != 0:
        return "only root can make one", "start the service with sudo or as a unit"
    storage = open_loop_storage(folder)
    if isinstance(storage, StorageError):
        return storage.sentence, storage.cure
    try:
        maker, result = try_one(storage, _SOMEBODY)
    except OSError as error:
        return str(error.strerror), None
    maker.reap()
    return result.sentence, result.cure or None


def _swap_limited(kind: type[CgroupTree], folder: str) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return kind.can_limit_swap(descriptor)
    finally:
        os.close(descriptor)
