"""A clone whose user namespace belongs to the sandbox's uid and not to root.

The kernel counts inotify instances and watches, queued signals, POSIX timers, bytes of message queues and namespaces
for each user, and again for the owner of the user namespace that the user is in, user_namespaces(7). The owner is the
effective uid of the process that makes the namespace. If that is root, all sandboxes share root's counts, and one of
them can use them up for the whole host.
"""

from __future__ import annotations

import os

from app.launcher.kernel.syscalls import (
    PR_GET_SECUREBITS,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    PR_SET_SECUREBITS,
    SECBIT_NO_SETUID_FIXUP,
    clone3,
    parent_death_signal,
    prctl,
    set_effective_uid,
)


def clone_owned_by(uid: int, flags: int) -> tuple[int, int]:
    """Calls `clone3(flags)` as `uid` of the host. `flags` must have CLONE_NEWUSER. The caller must be root, with
    CAP_SETUID and CAP_SETPCAP. Raises OSError.

    Only the effective uid changes. Meanwhile SECBIT_NO_SETUID_FIXUP keeps the capabilities as they are. No file is
    opened in between, as the uid for files follows the effective uid. The clone does not inherit the securebits.
    """
    parent, signal, securebits = os.getppid(), parent_death_signal(), prctl(PR_GET_SECUREBITS)
    prctl(PR_SET_SECUREBITS, securebits | SECBIT_NO_SETUID_FIXUP)
    try:
        set_effective_uid(uid)
        # The kernel does this too, but only where fs.suid_dumpable is not 1. What the clone has in /proc belongs to
        # root until its exec, so that the launcher can write its maps without CAP_DAC_OVERRIDE.
        prctl(PR_SET_DUMPABLE, 0)
        pid, pidfd = clone3(flags)
    except OSError:
        _become_root(parent, signal, securebits)
        raise
    if pid:
        _become_root(parent, signal, securebits)
    return pid, pidfd


def _become_root(parent: int, signal: int, securebits: int) -> None:
    """Ends the process if it cannot: nothing may go on as a sandbox's user.

    The change of the effective uid cleared the parent-death signal, prctl(2). So it is set again; if the parent ended
    meanwhile, the process does what the signal would have done.
    """
    try:
        set_effective_uid(0)
        prctl(PR_SET_SECUREBITS, securebits)
        prctl(PR_SET_PDEATHSIG, signal)
    except OSError:
        os._exit(1)
    if signal and os.getppid() != parent:
        os.kill(os.getpid(), signal)
