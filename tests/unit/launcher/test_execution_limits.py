"""When the launcher looks at executions with limits of their own, and what it says of them."""

from __future__ import annotations

import os
from typing import Any

from app.core.execution_limits import EXECUTION_LIMITS
from app.core.limits import MIB
from app.launcher.daemon import checks
from app.launcher.daemon.execution_limits import LimitedExecutions
from app.launcher.daemon.groups import Usage

SECOND = 1_000_000_000


class FakeSandbox:
    """Also its groups. `looks`: how often its usage was read."""

    def __init__(self) -> None:
        self.groups = self
        self.running = [1]
        self.cpu_ns = self.ooms = self.looks = 0

    def usage(self, number: int) -> Usage:
        assert number == 1
        self.looks += 1
        return Usage(self.cpu_ns, 0, self.ooms, True)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watched(cpu_ns: int) -> tuple[LimitedExecutions, Any, Clock]:
    clock, sandbox = Clock(), FakeSandbox()
    limited = LimitedExecutions(clock)
    limited.add(sandbox, 1, cpu_ns)  # type: ignore[arg-type]  # it asks for no more
    return limited, sandbox, clock


def steps(limited: LimitedExecutions, clock: Clock) -> list[Any]:
    """To the next moment at which it wants to look."""
    left = limited.milliseconds_left
    assert left is not None
    clock.now += left / 1000
    return limited.look()


def test_without_any_nobody_wakes() -> None:
    limited = LimitedExecutions()
    assert limited.milliseconds_left is None
    assert limited.look() == []


def test_one_that_computes_all_the_time_is_looked_at_a_few_times_and_ended_in_time() -> None:
    limited, sandbox, clock = watched(10 * SECOND)
    began, speed = clock.now, os.cpu_count() or 1
    found: list[Any] = []
    while not found:
        sandbox.cpu_ns = int((clock.now - began) * speed * SECOND)
        found = limited.look()
        if not found:
            clock.now += (limited.milliseconds_left or 0) / 1000
    assert (found[0].number, found[0].reason) == (1, "cpu_limit")
    assert found[0].detail.endswith("its limit is 10 s")
    assert 10 * SECOND <= sandbox.cpu_ns < 10.2 * SECOND * speed
    assert sandbox.looks <= 3
    assert limited.milliseconds_left is None


def test_one_that_sleeps_is_looked_at_when_it_could_have_used_all() -> None:
    limited, sandbox, clock = watched(100 * SECOND)
    began = clock.now
    for _ in range(4):
        assert steps(limited, clock) == []
    assert clock.now - began >= 4 * 100 / (os.cpu_count() or 1)
    sandbox.cpu_ns = 100 * SECOND - 1
    assert steps(limited, clock) == []
    for _ in range(8):
        assert steps(limited, clock) == []
    before = clock.now
    assert steps(limited, clock) == []
    assert clock.now - before >= 0.25, "near its limit, and it does nothing"


def test_one_that_has_ended_is_forgotten() -> None:
    limited, sandbox, clock = watched(SECOND)
    sandbox.running, sandbox.cpu_ns = [], 5 * SECOND
    assert steps(limited, clock) == []
    assert (sandbox.looks, limited.milliseconds_left) == (0, None)


def test_kills_at_its_own_memory_limit_are_counted() -> None:
    limited, sandbox, clock = watched(0)
    sandbox.ooms = 9
    assert steps(limited, clock) == []
    sandbox.ooms = 10
    (verdict,) = steps(limited, clock)
    assert verdict.reason == "oom"


def test_the_floors_of_the_launcher_are_those_of_the_api() -> None:
    floors = {name: row.floor for name, row in EXECUTION_LIMITS.items()}
    assert floors == {
        "cpu_seconds": checks.LEAST_CPU_NS / 1e9,
        "stack_mib": checks.LEAST_STACK / MIB,
        "open_files": checks.LEAST_OPEN_FILES,
        "file_mib": checks.LEAST_FILE / MIB,
        "memory_mib": checks.LEAST_MEMORY / MIB,
    }
