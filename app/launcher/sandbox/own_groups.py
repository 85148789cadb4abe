"""The sandbox's own control groups, where programs look for them."""

from __future__ import annotations

import errno
import os

from app.launcher.kernel.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, mount

PLACE = "/sys/fs/cgroup"
READ_ONLY = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
_READ_ONLY = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC


class GroupMount:
    """One of the sandbox's groups. `number`: of its hierarchy, and so of the descriptor that leads into the group.
    `names`: the controllers of the hierarchy as the kernel lists them, empty for version 2. `has_memory`: whether it
    limits memory."""

    __slots__ = ("has_memory", "join_file", "names", "number", "path")

    def __init__(self, number: int, names: str, join_file: str, has_memory: bool) -> None:
        self.number, self.names, self.join_file, self.has_memory = number, names, join_file, has_memory
        self.path = f"{PLACE}/{names}" if names else PLACE

    def attach(self) -> None:
        """Mounts the group that is the root of the caller's cgroup namespace, cgroup_namespaces(7)."""
        kind = "cgroup" if self.names else "cgroup2"
        mount(kind, self.path, kind, READ_ONLY, self.names or None)

    def prove(self, descriptor: int) -> None:
        """Raises OSError unless it is the group into which the launcher's descriptor leads, and nobody can write."""
        if not os.path.samestat(os.fstat(descriptor), os.stat(f"{self.path}/{self.join_file}")):
            raise OSError(errno.ENOTSUP, f"{self.path} is another group")
        if os.statvfs(self.path).f_flag & _READ_ONLY != _READ_ONLY:
            raise OSError(errno.EROFS, f"{self.path} is writable")


def make_mount_points(root: str, mounts: list[GroupMount]) -> None:
    """In the template at `root`. Where one hierarchy has several controllers, programs look for each by its name."""
    os.makedirs(root + PLACE)
    for each in mounts:
        if each.names:
            os.mkdir(root + each.path)
        if "," in each.names:
            for name in each.names.split(","):
                os.symlink(each.names, f"{root}{PLACE}/{name}")
