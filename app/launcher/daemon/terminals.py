"""Terminals of sandboxes. The launcher opens them: no program of a sandbox may."""

from __future__ import annotations

import errno
import fcntl
import os

from app.launcher.kernel.syscalls import MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, detached_mount

_MOST = 64  # of one sandbox; the host has 4096 for all (kernel.pty.max), 1024 of them for itself (kernel.pty.reserve)
NONE_LEFT = (
    f"the sandbox has {_MOST} terminals already, or the host has no more; what an earlier command left behind may hold "
    "them"
)
# Who may make terminals: root of the host. Whoever has both sides of one makes threads of the kernel work for nothing:
# a sandbox with 0.1 processors took 1.4 of the host, measured, by writing into eight that nobody reads.
_MAKERS = "0600"
_PTMX = os.makedev(5, 2)  # devices.txt of the kernel
_TIOCSPTLCK = 0x40045431


def make_terminals(owner: int) -> int:
    """A devpts for one sandbox, mounted nowhere yet. Its terminals belong to `owner`, a uid and gid of the host. Raises
    OSError."""
    options = {"uid": str(owner), "gid": str(owner), "mode": "0600", "ptmxmode": _MAKERS, "max": str(_MOST)}
    return detached_mount("devpts", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)


def open_terminal(pid: int) -> int:
    """The controlling side of a new terminal in the devpts of the sandbox of worker `pid`, unlocked. Raises OSError:
    ENOSPC when the sandbox, or the whole host, has as many as it may have."""
    descriptor = os.open(f"/proc/{pid}/root/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_rdev != _PTMX:
            raise OSError(errno.ENOTTY, "not a devpts")
        fcntl.ioctl(descriptor, _TIOCSPTLCK, b"\0\0\0\0")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
