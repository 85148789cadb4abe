"""A limit of an execution above the sandbox's is refused with what has to be higher."""

from __future__ import annotations

import pytest

from app.core.capabilities import Capability
from app.core.errors import LimitTooHigh
from app.core.execution_limits import check_execution_limits
from app.core.limits import Limits
from app.core.models import ExecutionLimits
from tests.null_backend import CAPABILITIES, NullBackend


@pytest.mark.parametrize(
    ("asked", "way_out"),
    [
        (ExecutionLimits(memory_mib=513), "a higher limits.memory_mib"),
        (ExecutionLimits(stack_mib=513), "a higher limits.memory_mib"),
        (ExecutionLimits(file_mib=513), "a higher limits.disk_mib"),
        (ExecutionLimits(cpu_seconds=3601), "a higher limits.cpus or limits.wall_seconds"),
        (ExecutionLimits(open_files=4097), "no execution can have more"),
    ],
)
def test_ceiling_of_the_sandbox_says_what_has_to_be_higher(asked: ExecutionLimits, way_out: str) -> None:
    info = NullBackend(capabilities=CAPABILITIES | {Capability.EXECUTION_LIMITS, Capability.EXECUTION_RLIMITS}).info
    with pytest.raises(LimitTooHigh) as refusal:
        check_execution_limits(asked, Limits(), info)
    assert str(refusal.value).endswith(way_out)
