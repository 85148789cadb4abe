"""`memory_mib` is the one hard limit: of the processes and files of a sandbox together, to the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service import Service

MIB = 1 << 20
LIMIT, NEAR = 64, 8  # MiB; what the kernel itself needs for a program of that size is far below NEAR


@pytest.fixture
def small(service: Service) -> Iterator[str]:
    made = service.create(limits={"memory_mib": LIMIT, "disk_mib": LIMIT})
    yield made
    service.call("DELETE", f"/sandboxes/{made}")


def touch(service: Service, sandbox: str, mib: int, **limits: int) -> dict[str, Any]:
    """The exit of a program that writes to so much memory at once, and has little of its own."""
    command = ["dd", "if=/dev/zero", "of=/dev/null", f"bs={mib}M", "count=1"]
    return dict(service.run(sandbox, *command, limits=limits)["exit"])


def test_program_ends_as_oom_just_above_the_limit_and_not_just_below(service: Service, small: str) -> None:
    receipt = service.call("GET", f"/sandboxes/{small}")[1]["isolation"]
    assert receipt["cgroup"]["memory_bytes"] == LIMIT * MIB
    below, above = touch(service, small, LIMIT - NEAR), touch(service, small, LIMIT + NEAR)
    assert (below["reason"], below["code"]) == ("exited", 0)
    assert (above["reason"], above["signal"]) == ("oom", "SIGKILL")
    assert (LIMIT - NEAR) * MIB < below["max_memory_bytes"] <= LIMIT * MIB
    assert (LIMIT - NEAR) * MIB < above["max_memory_bytes"] <= LIMIT * MIB
    assert service.call("GET", f"/sandboxes/{small}/usage")[1]["memory_peak_bytes"] <= LIMIT * MIB


def test_execution_with_a_limit_of_its_own_ends_there(service: Service, small: str) -> None:
    own = LIMIT // 2
    below, above = (touch(service, small, mib, memory_mib=own) for mib in (own - NEAR, own + NEAR))
    assert (below["reason"], below["code"]) == ("exited", 0)
    assert (above["reason"], above["signal"]) == ("oom", "SIGKILL")
    assert above["max_memory_bytes"] <= own * MIB


def test_files_count_towards_the_limit(service: Service, small: str) -> None:
    half = LIMIT // 2
    assert service.run(small, "sh", "-c", f"head -c {half}M /dev/zero > file")["exit"]["code"] == 0
    assert touch(service, small, half - NEAR)["reason"] == "exited"
    assert touch(service, small, half + NEAR)["reason"] == "oom"
    assert service.run(small, "rm", "file")["exit"]["code"] == 0
    assert touch(service, small, half + NEAR)["reason"] == "exited"


def test_sandbox_whose_files_have_filled_its_memory_lives_on(service: Service, small: str) -> None:
    """Files leave a little of it, so that a command can start that deletes them, and a file operation too."""
    filled = service.run(small, "sh", "-c", "head -c 1G /dev/zero > file; echo $?")
    assert "No space left on device" in filled["stderr"]
    assert filled["stdout"] == "1\n"
    for _ in range(3):
        assert service.run(small, "sh", "-c", "ls | cat")["stdout"] == "file\n"
        assert service.call("HEAD", f"/sandboxes/{small}/files?path=file")[0] == 200
    assert service.call("DELETE", f"/sandboxes/{small}/files?path=file")[0] == 204
    assert touch(service, small, LIMIT - NEAR)["reason"] == "exited"


def test_the_smallest_sandbox_runs_programs(service: Service) -> None:
    sandbox = service.create(limits={"memory_mib": 16, "disk_mib": 16})
    try:
        assert service.run(sandbox, "sh", "-c", "echo a | cat")["stdout"] == "a\n"
        assert service.run(sandbox, "python3", "-c", "print(1)")["stdout"] == "1\n"
        assert touch(service, sandbox, 16 - NEAR)["reason"] == "exited"
        assert touch(service, sandbox, 16 + NEAR)["reason"] == "oom"
    finally:
        service.call("DELETE", f"/sandboxes/{sandbox}")
