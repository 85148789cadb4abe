"""What a program finds where it asks for its limits: the sandbox's own, exactly, and nothing that it could change."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import host
from tests.kernel.talk import start
from tests.service import Service

MIB = 1 << 20
MEMORY, CPUS = 96, 0.5
# Looks for its limits as a runtime does: mounts, then membership, then files.
LOOK = """
import json, os
mounts = [line.split() for line in open("/proc/self/mountinfo") if " - cgroup" in line]
groups = [line.strip().split(":", 2) for line in open("/proc/self/cgroup")]
def folder(controller):
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind == "cgroup2" or controller in options:
            mine = [path for _, names, path in groups if controller in names.split(",")] or [groups[-1][2]]
            return fields[4], fields[4] + mine[0].rstrip("/"), kind
def read(path):
    with open(path) as file:
        return file.read().split()
memory, own_memory, kind = folder("memory")
cpu, own_cpu, _ = folder("cpu")
limit, quota = ("memory.max", "cpu.max") if kind == "cgroup2" else ("memory.limit_in_bytes", "cpu.cfs_quota_us")
print(json.dumps({
    "memory": [read(f"{path}/{limit}")[0] for path in (memory, own_memory)],
    "cpu": [read(f"{path}/{quota}")[0] for path in (cpu, own_cpu)],
    "apart": own_memory != memory,
    "roots": [fields[3] for fields in mounts],
    "options": [fields[5] for fields in mounts],
    "meminfo": {line.split(":")[0]: int(line.split()[1]) for line in open("/proc/meminfo")},
}))
"""
# Opens every file and folder of the control groups for writing, and tries what changes a folder.
CHANGE = """
import errno, json, os
found = {}
def attempt(what, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        found.setdefault(errno.errorcode[error.errno], []).append(what)
    else:
        found.setdefault("works", []).append(what)
for folder, folders, files in os.walk("/sys/fs/cgroup"):
    attempt(folder, os.mkdir, folder + "/x")
    attempt(folder, os.chmod, folder, 0o777)
    for name in files:
        attempt(f"{folder}/{name}", os.open, f"{folder}/{name}", os.O_WRONLY)
        attempt(f"{folder}/{name}", os.chmod, f"{folder}/{name}", 0o666)
meminfo = "/proc/meminfo"
attempt("meminfo write", os.open, meminfo, os.O_WRONLY)
attempt("meminfo truncate", os.truncate, meminfo, 0)
attempt("meminfo chmod", os.chmod, meminfo, 0o666)
attempt("meminfo utime", os.utime, meminfo)
attempt("meminfo unlink", os.unlink, meminfo)
attempt("descriptors", os.listdir, "/proc/1/fd")
print(json.dumps(found))
"""
WALK = """
import os
for folder, folders, files in os.walk("/sys/fs/cgroup"):
    print(folder)
    for name in files:
        try:
            print(name, open(f"{folder}/{name}").read())
        except OSError:
            continue
"""


@pytest.fixture
def sandbox(service: Service) -> Iterator[str]:
    made = service.create(limits={"memory_mib": MEMORY, "disk_mib": 16, "cpus": CPUS})
    yield made
    service.call("DELETE", f"/sandboxes/{made}")


def look(service: Service, sandbox: str) -> dict[str, Any]:
    done = service.run(sandbox, "python3", "-c", LOOK)
    assert done["exit"]["code"] == 0, done["stderr"]
    return dict(json.loads(done["stdout"]))


def test_limits_are_read_in_the_control_groups_of_the_sandbox_and_of_the_execution(
    service: Service, sandbox: str
) -> None:
    for _ in range(2):  # the groups of the first execution are made on demand, those of the next one ahead
        seen = look(service, sandbox)
        assert seen["memory"] == [str(MEMORY * MIB)] * 2
        assert seen["cpu"] == [str(int(CPUS * 100_000))] * 2
        assert seen["apart"], "a program reads its own group, and not the one above"
        assert set(seen["roots"]) == {"/"}
        assert all({"ro", "nosuid", "nodev", "noexec"} <= set(options.split(",")) for options in seen["options"])


def test_nothing_of_it_can_be_changed(service: Service, sandbox: str) -> None:
    """Control: the launcher, as root outside, changes the same files."""
    control = [Path(folder) for folder in host.groups_of(service, host.host_uid(service, sandbox))]
    assert all(os.access(folder / "cgroup.procs", os.W_OK) for folder in control)
    done = service.run(sandbox, "python3", "-c", CHANGE)
    refused = json.loads(done["stdout"])
    assert set(refused) <= {"EROFS", "EACCES", "EPERM"}, refused.get("works")
    assert {"meminfo chmod", "meminfo utime"} <= set(refused["EROFS"]), "the owner may not either"
    assert {"meminfo write", "descriptors"} <= set(refused["EACCES"])
    assert "meminfo truncate" in {
        *refused["EROFS"],
        *refused["EACCES"],
    }, "by the order of its checks"
    assert any(path.endswith(("event_control", "cgroup.kill")) for path in refused["EROFS"])
    assert len(refused["EROFS"]) > 50
    assert look(service, sandbox)["memory"] == [str(MEMORY * MIB)] * 2


def test_neighbours_and_the_host_cannot_be_seen_there(service: Service, sandbox: str) -> None:
    """Control: outside, each group of the sandbox lies beside those of the neighbour."""
    neighbour = service.create()
    busy = start(service, neighbour, "sh", "-c", "echo up; sleep 600")
    busy.saw(b"up")
    first, uids = host.first_uid(service), [host.host_uid(service, each) for each in (sandbox, neighbour)]
    assert all(host.groups_of(service, uid) for uid in uids)
    said = service.run(sandbox, "python3", "-c", WALK)["stdout"]
    folders = [line for line in said.splitlines() if line.startswith("/sys/fs/cgroup")]
    assert len(folders) > 1
    assert all(re.fullmatch(r"/sys/fs/cgroup(/[a-z,]+)?(/\d+)?", folder) for folder in folders)
    words = [neighbour, sandbox, "_workers", f"bulkhead/{first}", str(host.worker_of(service, neighbour))]
    words += [f"s-{uid}" for uid in uids]
    mountinfo = service.run(sandbox, "cat", "/proc/self/mountinfo", "/proc/self/cgroup")["stdout"]
    assert [word for word in words if re.search(rf"\b{word}\b", said + mountinfo)] == []
    service.call("DELETE", f"/sandboxes/{neighbour}")


def test_total_memory_is_the_limit_and_available_memory_follows(service: Service, sandbox: str) -> None:
    seen = look(service, sandbox)["meminfo"]
    assert seen["MemTotal"] == MEMORY * 1024
    assert (MEMORY - 16) * 1024 < seen["MemAvailable"] <= seen["MemTotal"]
    assert (seen["SwapTotal"], seen["Buffers"]) == (0, 0)
    wait = (
        "import time\nx = b'x' * (48 << 20)\n"
        "def left(): return next(int(l.split()[1]) for l in open('/proc/meminfo') if l.startswith('MemAvailable'))\n"
        f"while left() > {(MEMORY - 48) * 1024}: time.sleep(0.02)\n"
        "print('taken', flush=True)\ndel x\n"
        f"while left() < {(MEMORY - 32) * 1024}: time.sleep(0.02)\n"
        "print('back', flush=True)"
    )
    assert service.run(sandbox, "python3", "-c", wait)["stdout"] == "taken\nback\n"
    free = service.run(sandbox, "free", "-b")["stdout"].splitlines()[1].split()
    assert int(free[1]) == MEMORY * MIB


def test_file_behind_it_is_out_of_reach_and_not_the_sandboxes(service: Service, sandbox: str) -> None:
    assert service.run(sandbox, "ls", "-A", "/tmp", "/workspace", "/dev/shm")["stdout"].count("meminfo") == 0
    assert service.call("GET", f"/sandboxes/{sandbox}/usage")[1]["disk_bytes"] == 0
    assert service.run(sandbox, "umount", "/proc/meminfo")["exit"]["code"] != 0
    assert service.run(sandbox, "umount", "/sys/fs/cgroup/memory")["exit"]["code"] != 0
    assert look(service, sandbox)["meminfo"]["MemTotal"] == MEMORY * 1024


# Fills the sandbox with memory that belongs to no process: first segments that stay, then a file.
SEGMENTS = """
import ctypes, os
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
usage = next(path for path in (
    "/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory.current") if os.path.exists(path))
while int(open(usage).read()) < {full}:
    at = libc.shmat(libc.shmget(0, 1 << 20, 0o1600), None, 0)
    ctypes.memset(at, 1, 1 << 20)
"""


def test_worker_is_never_killed_for_memory_that_nobody_holds(service: Service, sandbox: str) -> None:
    worker = host.worker_of(service, sandbox)
    full = SEGMENTS.format(full=(MEMORY - 4) * MIB)
    assert service.run(sandbox, "python3", "-c", full)["exit"]["code"] == 0
    filled = service.run(sandbox, "dd", "if=/dev/zero", "of=/workspace/file", "bs=64k")["exit"]
    assert filled["reason"] == "oom"
    reasons: list[str] = []
    while len(reasons) < 10 and reasons[-3:] != ["oom"] * 3:
        service.call("POST", f"/sandboxes/{sandbox}/executions", {"command": ["sleep", "600"]})
        reasons.append(service.run(sandbox, "true")["exit"]["reason"])
    assert set(reasons[-3:]) == {"oom"}, reasons
    assert service.call("GET", f"/sandboxes/{sandbox}")[1]["state"] == "running"
    assert host.worker_of(service, sandbox) == worker
