"""The end of a service that has a supervisor: in order, and within a bounded time also when one of its processes hangs.

The gateway ends first, so that clients get their answers. While it ends it asks the egress process and the launcher to
end sandboxes. If one of them does not answer, the gateway waits for it, so that one is killed first. With the launcher
the kernel ends every process of every sandbox.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

Process = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class GraceSeconds:
    """`egress`, `launcher`, `gateway`: after which one is killed because the gateway has not ended yet, each
    counted from the one before. The others: for what is left to do without a gateway."""

    egress: float = 2.0  # it only closes sockets
    launcher: float = 8.0  # a sandbox takes it milliseconds, and there may be thousands
    gateway: float = 5.0
    egress_alone: float = 1.0
    launcher_alone: float = 5.0


def end_in_order(
    gateway: Process | None, egress: Process | None, launcher: Process | None, grace: GraceSeconds | None = None
) -> None:
    """Returns when none of them runs."""
    grace = grace or GraceSeconds()
    if gateway is not None and gateway.poll() is None:
        gateway.terminate()
        for child, seconds in (
            (egress, grace.egress),
            (launcher, grace.launcher),
            (gateway, grace.gateway),
        ):
            if _has_ended(gateway, seconds):
                break
            if child is not None:
                child.kill()
        gateway.wait()
    for child, seconds in ((egress, grace.egress_alone), (launcher, grace.launcher_alone)):
        if child is not None and child.poll() is None:
            child.terminate()
            if not _has_ended(child, seconds):
                child.kill()
                child.wait()


def _has_ended(child: Process, seconds: float) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
