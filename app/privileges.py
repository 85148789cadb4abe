"""How a process that was started as root gives that up for good. Gateway and egress process do so."""

from __future__ import annotations

import contextlib
import ctypes
import os

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


def give_up_root(uid: int, parent: int) -> None:
    """Gives up groups, ids, capabilities (they go with uid 0), and the way back through set-id programs, for good. With
    a `parent` this process dies when the parent does. With 0 it is a service of its own. A negative `uid` leaves the
    ids as they are: the process was not started as root. Raises SystemExit."""
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        with contextlib.suppress(OSError):
            os.setuid(0)
            raise SystemExit("the way back to root is open")
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0), (_PR_SET_PDEATHSIG, 9 if parent else 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise SystemExit(f"prctl {option} failed: {os.strerror(ctypes.get_errno())}")
