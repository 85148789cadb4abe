"""Terminals of sandboxes. The launcher opens them: no program of a sandbox may."""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from app.launcher.kernel.syscalls import MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, detached_mount

_MOST = 16  # of one sandbox
OWN_LIMIT = f"the sandbox has {_MOST} terminals already; what an earlier command left behind may hold them"
NONE_LEFT = "the host has no more terminals for this sandbox now; what earlier commands left behind may hold them"
_COUNTS = "/proc/sys/kernel/pty"
# Who may make terminals: root of the host. Whoever has both sides of one makes threads of the kernel work for nothing:
# a sandbox with 0.1 processors took 1.4 of the host, measured, by writing into eight that nobody reads.
_MAKERS = "0600"
_PTMX = os.makedev(5, 2)  # devices.txt of the kernel
_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430


def make_terminals(owner: int) -> int:
    """A devpts for one sandbox, mounted nowhere yet. Its terminals belong to `owner`, a uid and gid of the host. Raises
    OSError."""
    options = {"uid": str(owner), "gid": str(owner), "mode": "0600", "ptmxmode": _MAKERS, "max": str(_MOST)}
    return detached_mount("devpts", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)


def open_terminal(pid: int, most: int) -> int:
    """The controlling side of a new terminal in the devpts of the sandbox of worker `pid`, unlocked. `most`: how many
    of the host may be in use with it. Raises OSError: ENOSPC when the sandbox has as many as one may have, EDQUOT when
    it has half of what the others leave of `most`.

    The kernel counts a terminal until nobody has either side of it. It gives a new one the lowest free number in its
    devpts. So all lower numbers are in use, and a sandbox never has more terminals than its highest number says."""
    left = min(most, _count("max") - _count("reserve")) - _count("nr")
    if left < 1:
        raise OSError(errno.EDQUOT, NONE_LEFT)
    descriptor = os.open(f"/proc/{pid}/root/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_rdev != _PTMX:
            raise OSError(errno.ENOTTY, "not a devpts")
        if int.from_bytes(fcntl.ioctl(descriptor, _TIOCGPTN, bytes(4)), sys.byteorder) >= left:
            raise OSError(errno.EDQUOT, NONE_LEFT)
        fcntl.ioctl(descriptor, _TIOCSPTLCK, b"\0\0\0\0")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _count(name: str) -> int:
    """Raises OSError."""
    with open(f"{_COUNTS}/{name}") as file:
        return int(file.read())
