"""What a sandbox reads of its control groups and its memory is its own, whatever a neighbour does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel import host
from tests.kernel.talk import Running, start
from tests.require import require
from tests.service import Service

MIB = 1024 * 1024
TAKEN, BURNT = 128 * MIB, 1.5  # by the neighbour: bytes, and seconds of processor time
TOLD = 48 * MIB, 0.7  # more than a reading itself takes, and far less than the above
NEIGHBOUR = f"""
import time
taken = bytearray(b"x") * {TAKEN}
while time.process_time() < {BURNT}:
    pass
print("taken", flush=True)
time.sleep(1000)
"""
# Every number in the files of the sandbox's own group, but in those of its executions, and in /proc/meminfo.
READ = """
import json, os, re
found = {}
for folder, folders, files in os.walk("/sys/fs/cgroup"):
    folders[:] = [name for name in folders if not name.isdigit()]
    for path in [f"{folder}/{name}" for name in files]:
        try:
            found[path] = [int(number) for number in re.findall(r"\\d+", open(path).read())]
        except OSError:
            continue
found["/proc/meminfo"] = [int(number) * 1024 for number in re.findall(r"(\\d+) kB", open("/proc/meminfo").read())]
print(json.dumps(found))
"""
LIST = """
import json, os
files = [f"{folder}/{name}" for folder, _, names in os.walk("/sys/fs/cgroup") for name in names]
tables = [path for path in files if path.endswith(("/cgroup.procs", "/tasks"))]
listed = {int(pid) for path in tables for pid in open(path).read().split()}
print(json.dumps([len(tables), sorted(listed), sorted(int(name) for name in os.listdir("/proc") if name.isdigit())]))
"""


@pytest.fixture
def pair(service: Service) -> Iterator[tuple[str, str]]:
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    both = service.create(limits={"memory_mib": 256}), service.create(limits={"memory_mib": 256})
    yield both
    for sandbox in both:
        service.call("DELETE", f"/sandboxes/{sandbox}")


def asked(service: Service, sandbox: str, script: str) -> Any:
    done = service.run(sandbox, "python3", "-c", script)
    assert done["exit"]["code"] == 0, done
    return json.loads(done["stdout"])


def busy(service: Service, sandbox: str) -> Running:
    running = start(service, sandbox, "python3", "-c", NEIGHBOUR)
    running.saw(b"taken")
    return running


def changes(before: dict[str, list[int]], after: dict[str, list[int]], kind: str) -> dict[str, int]:
    """By how much a number of each file has changed at most."""
    found = {}
    for path, numbers in after.items():
        if kind in path and len(numbers) == len(before.get(path, ())):
            found[path] = max((abs(new - old) for new, old in zip(numbers, before[path], strict=True)), default=0)
    return found


def test_nothing_tells_what_a_neighbour_uses(service: Service, pair: tuple[str, str]) -> None:
    """Control: the neighbour's own files and its own /proc/meminfo tell it."""
    one, other = pair
    before, control_before = (asked(service, sandbox, READ) for sandbox in pair)
    running = busy(service, other)
    host.until(
        lambda: max(changes(control_before, asked(service, other, READ), "meminfo").values()) > TAKEN,
        "the neighbour sees what it uses",
    )
    tables, listed, visible = asked(service, one, LIST)
    assert tables > 1
    assert set(listed) | {1} == set(visible), "a process outside would be a zero"
    after, control = asked(service, one, READ), asked(service, other, READ)
    memory, seconds = TOLD
    second = 10**9 if any("cpuacct" in path for path in control) else 10**6  # version 2 counts microseconds
    for kind, most in (("mem", memory), ("cpu", seconds * second)):
        told = changes(before, after, kind)
        assert len(told) > (1 if kind == "mem" else 0)
        assert {path: change for path, change in told.items() if change > most} == {}
        assert max(changes(control_before, control, kind).values()) > most
    running.delete()
