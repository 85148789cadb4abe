"""The limits that a client can ask for, with the floors of the core."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.api.schemas.strict import EXACT_INTEGER, WHOLE, Strict
from app.core.execution_limits import EXECUTION_LIMITS
from app.core.limits import LIMITS

Cpus = Annotated[float, Field(ge=LIMITS["cpus"].floor)]
MemoryMib = Annotated[int, Field(ge=LIMITS["memory_mib"].floor, le=EXACT_INTEGER), WHOLE]
Processes = Annotated[int, Field(ge=LIMITS["processes"].floor, le=EXACT_INTEGER), WHOLE]
DiskMib = Annotated[int, Field(ge=LIMITS["disk_mib"].floor, le=EXACT_INTEGER), WHOLE]
OutputBytes = Annotated[int, Field(ge=LIMITS["output_bytes"].floor, le=EXACT_INTEGER), WHOLE]
WallSeconds = Annotated[float, Field(ge=LIMITS["wall_seconds"].floor)]


class ProcessLimitsRequest(Strict):
    """Limits of the one execution of POST /run, whose sandbox already has a `memory_mib` of its own. `cpu_seconds`
    needs the capability `execution_limits`, the others `execution_rlimits`."""

    cpu_seconds: Annotated[float, Field(ge=EXECUTION_LIMITS["cpu_seconds"].floor)] | None = Field(
        None, description=EXECUTION_LIMITS["cpu_seconds"].meaning
    )
    stack_mib: Annotated[int, Field(ge=EXECUTION_LIMITS["stack_mib"].floor, le=EXACT_INTEGER), WHOLE] | None = Field(
        None, description=EXECUTION_LIMITS["stack_mib"].meaning
    )
    open_files: Annotated[int, Field(ge=EXECUTION_LIMITS["open_files"].floor, le=EXACT_INTEGER), WHOLE] | None = Field(
        None, description=EXECUTION_LIMITS["open_files"].meaning
    )
    file_mib: Annotated[int, Field(ge=EXECUTION_LIMITS["file_mib"].floor, le=EXACT_INTEGER), WHOLE] | None = Field(
        None, description=EXECUTION_LIMITS["file_mib"].meaning
    )


class ExecutionLimitsRequest(ProcessLimitsRequest):
    """Limits of one execution in a sandbox that stays: also its memory. They are never above those of the
    sandbox. `cpu_seconds` and `memory_mib` need the capability `execution_limits`, the others `execution_rlimits`."""

    memory_mib: Annotated[int, Field(ge=EXECUTION_LIMITS["memory_mib"].floor, le=EXACT_INTEGER), WHOLE] | None = Field(
        None, description=EXECUTION_LIMITS["memory_mib"].meaning
    )


class LimitsRequest(Strict):
    """A limit that is absent or null takes the operator's default. GET /runtimes lists defaults and ceilings. With the
    storage `memory` files are within memory_mib: an absent disk_mib is memory_mib at most, and a larger one is
    refused."""

    cpus: Cpus | None = Field(None, description=LIMITS["cpus"].meaning)
    memory_mib: MemoryMib | None = Field(None, description=LIMITS["memory_mib"].meaning)
    processes: Processes | None = Field(None, description=LIMITS["processes"].meaning)
    disk_mib: DiskMib | None = Field(None, description=LIMITS["disk_mib"].meaning)
    output_bytes: OutputBytes | None = Field(None, description=LIMITS["output_bytes"].meaning)
    wall_seconds: WallSeconds | None = Field(None, description=LIMITS["wall_seconds"].meaning)
