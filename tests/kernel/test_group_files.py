"""The limits of a sandbox and of an execution as the kernel has them: in the files of their control groups."""

from __future__ import annotations

from pathlib import Path

from tests.kernel import host
from tests.kernel.talk import start
from tests.service import Service

MIB = 1 << 20
# On version 1 the worker counts too, and `memsw` has memory in it.
FIRST = {
    "memory.limit_in_bytes": f"{96 * MIB}",
    "memory.memsw.limit_in_bytes": f"{96 * MIB}",
    "pids.max": "18",
    "cpu.cfs_quota_us": "50000",
    "cpu.cfs_period_us": "100000",
}
SECOND = {"memory.max": f"{96 * MIB}", "memory.swap.max": "0", "pids.max": "17", "cpu.max": "50000 100000"}
WITHOUT_SWAP = ("memory.memsw.limit_in_bytes", "memory.swap.max")  # not there on a kernel that does not count swap


def in_force(service: Service, sandbox: str, group: str = "") -> dict[str, str]:
    """What of these files the sandbox's group has, or one below it."""
    found, uid = {}, host.host_uid(service, sandbox)
    for folder in host.groups_of(service, uid):
        for name in {**FIRST, **SECOND}:
            file = Path(folder, name)
            if folder.endswith(f"/s-{uid}{group}") and host.WORKERS not in folder and file.exists():
                found[name] = file.read_text().strip()
    return found


def test_limits_are_in_force_in_the_group_of_the_sandbox(service: Service) -> None:
    sandbox = service.create(limits={"memory_mib": 96, "processes": 17, "cpus": 0.5})
    found = in_force(service, sandbox)
    expected = SECOND if "memory.max" in found else FIRST
    assert found == {name: value for name, value in expected.items() if name in found or name not in WITHOUT_SWAP}
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_limit_of_an_execution_is_in_force_in_its_group(service: Service, sandbox: str) -> None:
    running = start(service, sandbox, "sleep", "600", limits={"memory_mib": 32})
    found = in_force(service, sandbox, "/1")
    assert (found.get("memory.max") or found.get("memory.limit_in_bytes")) == f"{32 * MIB}"
    assert running.delete() == 204
    assert in_force(service, sandbox, "/1") == {}, "its groups go with it"
