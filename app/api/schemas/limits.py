"""The limits that a client can ask for, with the floors of the core."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.api.schemas.strict import EXACT_INTEGER, WHOLE, Strict
from app.core.policy import FLOORS


class LimitsRequest(Strict):
    """A limit that is absent or null takes the operator's default. GET /runtimes lists defaults and ceilings. With the
    runtime `process` files in /workspace, /tmp and /dev/shm count as memory, and the limit in force is the sum
    memory_mib + disk_mib."""

    cpus: Annotated[float, Field(ge=FLOORS.cpus)] | None = Field(None, description="cores; fractions are allowed")
    memory_mib: Annotated[int, Field(ge=FLOORS.memory_mib, le=EXACT_INTEGER), WHOLE] | None = Field(
        None, description="memory; `process` enforces the sum memory_mib + disk_mib, as files count as memory"
    )
    processes: Annotated[int, Field(ge=FLOORS.processes, le=EXACT_INTEGER), WHOLE] | None = Field(
        None, description="processes and threads at one time, in the whole sandbox"
    )
    disk_mib: Annotated[int, Field(ge=FLOORS.disk_mib, le=EXACT_INTEGER), WHOLE] | None = Field(
        None, description="files in /workspace, /tmp and /dev/shm together; with `process` they also count as memory"
    )
    output_bytes: Annotated[int, Field(ge=FLOORS.output_bytes, le=EXACT_INTEGER), WHOLE] | None = Field(
        None, description="output that is kept, per execution and channel; see `on_output_limit`"
    )
    wall_seconds: Annotated[float, Field(ge=FLOORS.wall_seconds)] | None = Field(
        None, description="longest time that an execution may run, and its default timeout"
    )
