"""The limits of a sandbox: one row for each, from which settings, schemas, answers and documents take their facts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from app.core.capabilities import Capability
from app.core.errors import InvalidRequest, LimitTooHigh

Number = TypeVar("Number", int, float)
MIB = 1024 * 1024
FACTS = "limit"


@dataclass(frozen=True, slots=True)
class Limit:
    """One row. `default` and `ceiling` are in force if the operator sets nothing. `ceiling` None means as many as the
    host has. Below `floor` nothing works. `capability` is that of a runtime that enforces the limit. If it is None, the
    core enforces it.
    """

    name: str
    unit: str
    floor: float
    default: float
    ceiling: float | None
    capability: Capability | None
    meaning: str

    @property
    def is_whole(self) -> bool:
        """Whether it counts something."""
        return isinstance(self.default, int)

    def number(self, value: float) -> float:
        """Returns an integer where it counts something."""
        return int(value) if self.is_whole else value

    def is_enforced(self, capabilities: Collection[Capability]) -> bool:
        return self.capability is None or self.capability in capabilities


def _row(
    default: Number,
    unit: str,
    meaning: str,
    *,
    floor: Number,
    ceiling: Number | None,
    capability: Capability | None = None,
) -> Number:
    facts = {"unit": unit, "meaning": meaning, "floor": floor, "ceiling": ceiling, "capability": capability}
    made: Any = field(default=default, metadata={FACTS: facts})
    return made  # type: ignore[no-any-return]  # as dataclasses.field: the type is that of the default


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one sandbox, and the table of them all."""

    cpus: float = _row(
        1.0,
        "cores",
        "cores; fractions are allowed",
        floor=0.01,
        ceiling=None,
        capability=Capability.LIMIT_CPUS,
    )
    memory_mib: int = _row(
        512,
        "MiB",
        "memory, the one hard limit; with the storage `memory` files count towards it",
        floor=16,  # measured: with less a dynamic program cannot be loaded beside its tmpfs pages
        ceiling=4096,
        capability=Capability.LIMIT_MEMORY,
    )
    processes: int = _row(
        128,
        "",
        "processes and threads at one time, in the whole sandbox",
        floor=1,
        ceiling=1024,
        capability=Capability.LIMIT_PROCESSES,
    )
    disk_mib: int = _row(
        512,
        "MiB",
        "size of all files: at most `memory_mib` with the storage `memory`; the storage `disk` needs 16",
        floor=1,
        ceiling=4096,
        capability=Capability.LIMIT_DISK,
    )
    output_bytes: int = _row(
        64 * MIB,
        "bytes",
        "output that is kept, for each execution and channel",
        floor=1,
        ceiling=256 * MIB,
    )
    wall_seconds: float = _row(
        3600.0,
        "seconds",
        "the longest time that an execution may run, and its default timeout",
        floor=0.001,
        ceiling=86_400.0,
    )

    def enforced(self, capabilities: Collection[Capability]) -> dict[str, float | None]:
        """The limits by name. None where a runtime with these capabilities does not enforce one."""
        return {row.name: getattr(self, row.name) if row.is_enforced(capabilities) else None for row in LIMITS.values()}


LIMITS: Mapping[str, Limit] = {
    row.name: Limit(row.name, default=getattr(Limits(), row.name), **row.metadata[FACTS]) for row in fields(Limits)
}


@dataclass(frozen=True, slots=True)
class LimitRange:
    """An operator's default and ceiling for one limit."""

    default: float
    ceiling: float


def lower(ranges: Mapping[str, LimitRange], ceilings: Mapping[str, float]) -> dict[str, LimitRange]:
    """Lowers the operator's ranges to a runtime's own ceilings."""
    tops = {name: min(limit.ceiling, ceilings.get(name, limit.ceiling)) for name, limit in ranges.items()}
    return {name: LimitRange(min(limit.default, tops[name]), tops[name]) for name, limit in ranges.items()}


def choose_limits(asked: Mapping[str, float | None], ranges: Mapping[str, LimitRange]) -> Limits:
    """Returns the limits of a sandbox: what was asked for, else the operator's defaults. Raises LimitTooHigh,
    InvalidRequest."""
    chosen = {name: row.number(_choose(row, asked.get(name), ranges[name])) for name, row in LIMITS.items()}
    return Limits(**chosen)  # type: ignore[arg-type]  # `number` made them what their rows are


def _choose(row: Limit, asked: float | None, operators: LimitRange) -> float:
    if asked is None:
        return float(operators.default)
    if not asked >= row.floor:  # NaN too
        raise InvalidRequest.at(f"/limits/{row.name}", f"must be at least {row.floor:g}")
    if asked > operators.ceiling:
        raise LimitTooHigh(f"/limits/{row.name}", asked, operators.ceiling)
    return float(asked)
