"""The limits of one execution, which only ever lower what its sandbox has."""

from __future__ import annotations

from dataclasses import dataclass

from app.core.backend import RuntimeInfo
from app.core.capabilities import Capability
from app.core.errors import LimitTooHigh, PolicyNotSupported
from app.core.limits import Limits
from app.core.models import ExecutionLimits

OPEN_FILES = 4096  # what every process of a sandbox may open, app/launcher/sandbox/lockdown.py


@dataclass(frozen=True, slots=True)
class ExecutionLimit:
    """One row. Below `floor` hardly any program works."""

    floor: float
    meaning: str
    needs: Capability


_GROUP, _EACH = Capability.EXECUTION_LIMITS, Capability.EXECUTION_RLIMITS  # of all processes, of each
EXECUTION_LIMITS = {
    "cpu_seconds": ExecutionLimit(
        0.01, "processor time of all its processes; beyond it the end is `cpu_limit`", _GROUP
    ),
    "stack_mib": ExecutionLimit(1, "stack of each process", _EACH),
    "open_files": ExecutionLimit(8, "open descriptors of each process", _EACH),
    "file_mib": ExecutionLimit(1, "the largest file that a process can write; beyond it SIGXFSZ", _EACH),
    "memory_mib": ExecutionLimit(
        16, "memory of all its processes together, with the files that they write in memory", _GROUP
    ),
}


def ceilings_of(limits: Limits) -> dict[str, float]:
    """The most that an execution in a sandbox with these limits could use in any case."""
    return {
        "cpu_seconds": limits.cpus * limits.wall_seconds,
        "stack_mib": limits.memory_mib,
        "open_files": OPEN_FILES,
        "file_mib": limits.disk_mib,
        "memory_mib": limits.memory_mib,
    }


# What a client raises in the sandbox to raise a ceiling. What every process may open is fixed.
_RAISED_BY = {
    "cpu_seconds": "limits.cpus or limits.wall_seconds",
    "stack_mib": "limits.memory_mib",
    "file_mib": "limits.disk_mib",
    "memory_mib": "limits.memory_mib",
}


def _way_out(name: str) -> str:
    if name not in _RAISED_BY:
        return "no execution can have more"
    return f"the sandbox has no more; create the sandbox with a higher {_RAISED_BY[name]}"


def check_execution_limits(asked: ExecutionLimits, limits: Limits, runtime: RuntimeInfo) -> None:
    """`limits`: of the sandbox. Raises PolicyNotSupported, LimitTooHigh."""
    for name, row in EXECUTION_LIMITS.items():
        value: float | None = getattr(asked, name)
        if value is None:
            continue
        pointer = f"/limits/{name}"
        if row.needs not in runtime.capabilities:
            sentence = f"the runtime {runtime.name!r} cannot limit the {name} of an execution"
            raise PolicyNotSupported(pointer, runtime.name, sentence)
        ceiling = ceilings_of(limits)[name]
        if value > ceiling:
            raise LimitTooHigh(pointer, value, ceiling, _way_out(name))
