"""The mounts that each sandbox has of its own, made in its own mount namespace. What they cover is in the template
(`daemon/template.py`)."""

from __future__ import annotations

import os

from app.launcher.kernel.syscalls import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    attach_mount,
    mount,
    umount,
)
from app.launcher.sandbox import own_memory

INSIDE_ID = 1000
OWN = "/.bulkhead"  # the launcher's few things inside the template: mask sources and the canary
CANARY = OWN + "/canary"
# Of the sandbox's memory, in bytes: files are memory, and what deletes them must be able to start. A shell with two
# commands needs 0.8 MiB (measured).
NEVER_FILES = 4 << 20
# The system directories that a merged-/usr host has as links into /usr, and other hosts as directories of their own.
SYSTEM_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What tells about the host even below a read-only /proc. Others that containers mask need none here: kmsg and
# sysrq-trigger are root's, and bus, fs, irq and sys are worth masking only where they can be written.
MASKED_FILES = (
    "kcore",
    "keys",
    "key-users",
    "kallsyms",
    "cmdline",
    "interrupts",
    "locks",
    "timer_list",
    "sched_debug",
    "latency_stats",
    # Counts of the whole host that tell what neighbours do, to the event or page. The coarse ones that programs need
    # (stat, loadavg, uptime) stay.
    "softirqs",
    "schedstat",
    "vmstat",
    "zoneinfo",
    "buddyinfo",
    "diskstats",
    "partitions",  # loop devices and their sizes: the disks of neighbours
)
# `fs` tells of each file system of the host, disks of neighbours among them, how much is free in which part.
MASKED_FOLDERS = ("acpi", "fs", "scsi", "pressure")
# What programs must be able to read, and may not tell what it does: covered by a file that is the same for everybody.
# Java turns its container support off where `cgroups` cannot be read; PID 1 lives in another group than all the others.
CONSTANTS = {"cgroups": "cgroups", "1/cgroup": "membership", "1/task/1/cgroup": "membership"}
_READABLE = {f"{OWN}/{name}" for name in CONSTANTS.values()}


def mount_proc() -> None:
    """Mounts the /proc of the sandbox's own PID namespace, read-only as a whole: /proc/sys, sysrq-trigger and
    oom_score_adj too."""
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)


def unmasked(pairs: list[tuple[str, str]]) -> list[str]:
    """Returns files that should be covered and are not, or that can be read and are not a constant."""
    return [target for source, target in pairs if not _covers(source, target)]


def _covers(source: str, target: str) -> bool:
    """Whether a mount hides the target: its source may be read only where all may read it."""
    if not os.path.samestat(os.stat(source), os.stat(target)):
        return False
    return source in _READABLE or not os.access(target, os.R_OK)


def mask_proc(pairs: list[tuple[str, str]]) -> None:
    for source, target in pairs:
        mount(source, target, None, MS_BIND)


def mount_private_storage(*, with_meminfo: bool) -> int:
    """One tmpfs behind /workspace, /tmp and /dev/shm, so that one number limits them. Returns a descriptor of
    /proc/meminfo, which is a file of it, or -1."""
    mount("sandbox", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=0755")  # noqa: S108 - the sandbox's own
    for name, mode in (("workspace", 0o700), ("tmp", 0o1777), ("shm", 0o1777)):
        os.mkdir(f"/tmp/{name}")  # noqa: S108
        os.chmod(f"/tmp/{name}", mode)  # noqa: S108 - the umask would take bits away
    mount("/tmp/workspace", "/workspace", None, MS_BIND)  # noqa: S108
    mount("/tmp/shm", "/dev/shm", None, MS_BIND)  # noqa: S108
    meminfo = _cover_meminfo("/tmp/meminfo") if with_meminfo else -1  # noqa: S108
    mount("/tmp/tmp", "/tmp", None, MS_BIND)  # noqa: S108 - last: it covers the others
    return meminfo


def _cover_meminfo(path: str) -> int:
    """Returns a descriptor by which the file can still be written."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444)
    os.write(descriptor, bytes(1))  # so that its page belongs to all workers, and not to the sandbox
    mount(path, own_memory.PLACE, None, MS_BIND)
    mount("none", own_memory.PLACE, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    return descriptor


def size_private_storage(size: int) -> None:
    """Sets its final size. Inodes are limited with it: one per 4 KiB, as each costs the kernel about 1 KiB."""
    options = f"size={size},nr_inodes={max(1024, size // 4096)}"
    mount("none", "/workspace", None, MS_REMOUNT | MS_NOSUID | MS_NODEV, options)


def mount_private_disk(disk: int) -> None:
    """Puts the disk in the place of the tmpfs behind /workspace and /tmp. /dev/shm stays in memory."""
    for path in ("/workspace", "/tmp", "/tmp"):  # noqa: S108 - /tmp has the tmpfs itself below its own folder
        umount(path, MNT_DETACH)
    attach_mount(disk, "/tmp")  # noqa: S108
    mount("/tmp/workspace", "/workspace", None, MS_BIND)  # noqa: S108
    mount("/tmp/tmp", "/tmp", None, MS_BIND)  # noqa: S108
