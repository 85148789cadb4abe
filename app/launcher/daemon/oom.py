"""Executions whose processes the kernel kills for memory again and again.

At each such kill the kernel writes into its log, which keeps only the newest part. A loop of kills would push out what
the operator has to know. Programs survive the loss of some children, so only the loop is ended.

The kernel reports a kill in a sandbox's group, so the launcher need not poll: on version 1 through an eventfd that is
registered with the group's `memory.oom_control`, on version 2 by a change of its `memory.events`.
"""

from __future__ import annotations

from app.launcher.daemon.watch import Verdict

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from app.launcher.daemon.sandbox_process import SandboxProcess

MOST_KILLS = 10


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
