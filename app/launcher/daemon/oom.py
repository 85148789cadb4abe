"""Executions whose processes the kernel kills for memory again and again.

At each such kill the kernel writes into its log, which keeps only the newest part. A loop of kills would push out what
the operator has to know. Programs survive the loss of some children, so only the loop is ended.

The kernel reports a kill in a sandbox's group, so the launcher need not poll: on version 1 through an eventfd that is
registered with the group's `memory.oom_control`, on version 2 by a change of its `memory.events`.
"""

from __future__ import annotations

import os
import select

from app.launcher.daemon.cgroup import field, has, read, write
from app.launcher.daemon.watch import Verdict

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from app.launcher.daemon.sandbox_process import SandboxProcess

MOST_KILLS = 10


def can_tell_ooms(first: bool, payload: str, at: int) -> bool:
    """Whether the kernel reports kills for memory. Kernels since 6.12 announce that version 1 will stop doing so."""
    return has(f"{payload}/cgroup.event_control" if first else f"{payload}/memory.events", at)


class OomEvents:
    """The reports of one payload. Poll `descriptor` for `events`, and call `take` after each."""

    __slots__ = ("descriptor", "events")

    def __init__(self, first: bool, payload: str, at: int) -> None:
        """Raises OSError."""
        self.events = select.POLLIN if first else select.POLLPRI
        if not first:
            self.descriptor = os.open(f"{payload}/memory.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
            self.take()  # the kernel tells of changes since the last read
            return
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(f"{payload}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
            try:
                write(f"{payload}/cgroup.event_control", at, f"{self.descriptor} {control}")
            finally:
                os.close(control)
        except OSError:
            self.close()
            raise

    def take(self) -> None:
        if self.events == select.POLLIN:
            os.eventfd_read(self.descriptor)
        else:
            os.pread(self.descriptor, 4096, 0)

    def close(self) -> None:
        os.close(self.descriptor)


def kills_of(first: bool, group: str, at: int) -> int:
    """How many processes of a payload the kernel has killed for memory. Raises OSError."""
    return field(read(f"{group}/memory.oom_control" if first else f"{group}/memory.events", at), "oom_kill")


def killed_too_often(sandboxes: list[SandboxProcess]) -> list[Verdict]:
    """The rule for executions with too many kills for memory."""
    found: list[Verdict] = []
    for sandbox in sandboxes:
        for number in sandbox.running:
            kills = sandbox.groups.oom_kills(number)
            if kills >= MOST_KILLS:
                detail = f"the kernel killed {kills} of its processes at the memory limit"
                found.append(Verdict(sandbox, number, "oom", f"{detail}; after {MOST_KILLS} it is ended"))
    return found
