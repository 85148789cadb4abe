"""What the launcher does as the user of a sandbox: a clone whose user namespace belongs to that uid and not to root.

The kernel counts inotify instances and watches, queued signals, POSIX timers, bytes of message queues and namespaces
for each user, and again for the owner of the user namespace that the user is in, user_namespaces(7). The owner is the
effective uid of the process that makes the namespace. If that is root, all sandboxes share root's counts, and one of
them can use them up for the whole host. Who has the owner's effective uid has every capability in the namespace.
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


class EffectiveUser:
    """Is `uid` of the host from now on, until `end`. The caller must be root, with CAP_SETUID and CAP_SETPCAP. Raises
    OSError.

    Only the effective uid changes. Meanwhile SECBIT_NO_SETUID_FIXUP keeps the capabilities as they are. No file may be
    opened in between, as the uid for files follows the effective uid.
    """

    __slots__ = ("_parent", "_securebits", "_signal")

    def __init__(self, uid: int) -> None:
        self._parent, self._signal, self._securebits = os.getppid(), parent_death_signal(), prctl(PR_GET_SECUREBITS)
        prctl(PR_SET_SECUREBITS, self._securebits | SECBIT_NO_SETUID_FIXUP)
        try:
            set_effective_uid(uid)
            # The kernel does this too, but only where fs.suid_dumpable is not 1. What a clone has in /proc belongs to
            # root until its exec, so that the launcher can write its maps without CAP_DAC_OVERRIDE.
            prctl(PR_SET_DUMPABLE, 0)
        except OSError:
            self.end()
            raise

    def end(self) -> None:
        """Becomes root again. Ends the process if it cannot: nothing may go on as a sandbox's user.

        The change of the effective uid cleared the parent-death signal, prctl(2). So it is set again; if the parent
        ended meanwhile, the process does what the signal would have done.
        """
        try:
            set_effective_uid(0)
            prctl(PR_SET_SECUREBITS, self._securebits)
            prctl(PR_SET_PDEATHSIG, self._signal)
        except OSError:
            os._exit(1)
        if self._signal and os.getppid() != self._parent:
            os.kill(os.getpid(), self._signal)


def clone_owned_by(uid: int, flags: int) -> tuple[int, int]:
    """Calls `clone3(flags)` as `uid` of the host. `flags` must have CLONE_NEWUSER. Raises OSError. The clone does not
    inherit the securebits."""
    user = EffectiveUser(uid)
    try:
        pid, pidfd = clone3(flags)
    except OSError:
        user.end()
        raise
    if pid:
        user.end()
    return pid, pidfd
