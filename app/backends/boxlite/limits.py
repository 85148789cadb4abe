"""What a box and a command in it may have. The server checks little of it, and keeps less than it accepts."""

from __future__ import annotations

import math
from dataclasses import replace

from app.backends.boxlite.inside import MARK, WRAPPER_MARK
from app.core.backend import CommandLimits
from app.core.errors import InvalidRequest, LimitTooHigh
from app.core.limits import Limits

# Seen: a string of 128 KiB hangs the request for ever, 200 KB of strings in all are too many for its message. The
# variable BOXLITE_EXECUTOR=guest leads out of the container, to root in the guest.
COMMAND_LIMITS = CommandLimits(
    argument_bytes=100_000,
    arguments=8192,
    variables=1024,
    total_bytes=150_000,
    reserved=frozenset({"BOXLITE_EXECUTOR", MARK, WRAPPER_MARK}),
)
MOST_CPUS = 16  # seen: 64 boots, and silently has 16
LEAST_MEMORY_MIB = 64  # seen: 16 does not boot
GIB = 1024


def whole(limits: Limits) -> Limits:
    """Rounds up to whole cpus and GiB, as BoxLite knows no others. Raises LimitTooHigh, InvalidRequest."""
    if limits.cpus > MOST_CPUS:
        raise LimitTooHigh("/limits/cpus", limits.cpus, MOST_CPUS)
    if limits.memory_mib < LEAST_MEMORY_MIB:
        raise InvalidRequest.at("/limits/memory_mib", f"must be at least {LEAST_MEMORY_MIB} for a microVM")
    return replace(limits, cpus=float(math.ceil(limits.cpus)), disk_mib=math.ceil(limits.disk_mib / GIB) * GIB)
