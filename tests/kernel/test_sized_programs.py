"""Programs see the limits of their sandbox: what they ask for is the sandbox's own, and they size themselves by it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import pytest

from tests.require import require, require_program
from tests.service import Service

MIB = 1024 * 1024
CPUS = len(os.sched_getaffinity(0))
# 100 KiB are alive at any time, and 3 GB come and go.
JAVA = """
class Main {
  public static void main(String[] arguments) {
    byte[][] alive = new byte[100][];
    for (int number = 0; number < 3_000_000; number++) alive[number % 100] = new byte[1024];
    System.out.println(Runtime.getRuntime().maxMemory() / 1048576);
  }
}
"""
NODE = """
console.log(JSON.stringify([os.totalmem(), process.constrainedMemory(), v8.getHeapStatistics().heap_size_limit]))
"""
# The runtime tells it every millisecond. A command may have ended before.
GO = """
export PATH=$PATH:/usr/local/go/bin GODEBUG=schedtrace=1
until go env GOOS 2>&1 | grep -o -m 1 'gomaxprocs=[0-9]*'; do :; done
"""
MAKE = "make -j$(nproc) -f - << 'END'\nall:\n\t@echo $(filter -j%,$(MAKEFLAGS))\nEND"
Create = Callable[..., str]


@pytest.fixture
def create(service: Service) -> Iterator[Create]:
    """Makes sandboxes with some limits, which are destroyed afterwards."""
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    made: list[str] = []

    def make(**limits: float) -> str:
        made.append(service.create(limits=limits))
        return made[-1]

    yield make
    for sandbox in made:
        service.call("DELETE", f"/sandboxes/{sandbox}")


def run(service: Service, sandbox: str, *command: str) -> dict[str, Any]:
    return service.run(sandbox, *command, env={"HOME": "/tmp"}, timeout_seconds=200)


@pytest.mark.parametrize("cpus", [0.5, 1, 1.5])
def test_program_starts_as_much_at_once_as_it_has_processors(service: Service, create: Create, cpus: float) -> None:
    require_program("make")
    require_program("go")
    require("processors", CPUS > 1, "with one there is no other number")
    sandbox, count = create(cpus=cpus), ceil(cpus)
    assert run(service, sandbox, "nproc")["stdout"] == f"{count}\n"
    assert run(service, sandbox, "sh", "-c", MAKE)["stdout"] == f"-j{count}\n"
    assert run(service, sandbox, "sh", "-c", GO)["stdout"] == f"gomaxprocs={count}\n"
    pool = "import os; print(len(os.sched_getaffinity(0)), getattr(os, 'process_cpu_count', lambda: None)())"
    assert run(service, sandbox, "python3", "-c", pool)["stdout"] in (f"{count} {count}\n", f"{count} None\n")


def test_java_finds_the_limits_of_its_sandbox(service: Service, create: Create) -> None:
    require_program("java")
    done = run(service, create(memory_mib=256, cpus=1), "java", "-XshowSettings:system", "-version")
    found = dict(re.findall(r"^ +([\w& ]+): (\S+)$", done["stderr"] + done["stdout"], re.MULTILINE))
    assert found["Provider"] in ("cgroupv1", "cgroupv2")
    assert (found["Effective CPU Count"], found["CPU Quota"]) == ("1", "100000us")
    assert (found["Memory Limit"], found["Memory & Swap Limit"]) == ("256.00M", "256.00M")


def test_java_with_little_alive_stays_within_its_memory_without_a_flag(service: Service, create: Create) -> None:
    """Control: the same program with the memory of the host in view."""
    require_program("java")
    require("processors", CPUS > 1, "with one Java takes little memory by itself")
    sandbox = create(memory_mib=256, cpus=CPUS)
    run(service, sandbox, "sh", "-c", f"cat > Main.java << 'END'\n{JAVA}END")
    done = run(service, sandbox, "java", "Main.java")
    assert done["exit"]["code"] == 0, done
    assert 64 < int(done["stdout"]) < 256
    control = run(service, sandbox, "java", "-XX:-UseContainerSupport", "Main.java")
    assert control["exit"]["reason"] == "oom", control


def test_node_finds_the_memory_of_its_sandbox(service: Service, create: Create) -> None:
    """V8 takes half of it for its heap, and 259 MiB at least."""
    require_program("node")
    for limit in (256, 1024):
        done = run(service, create(memory_mib=limit), "node", "-e", NODE)
        total, constrained, heap = json.loads(done["stdout"])
        assert (total, constrained) == (limit * MIB, limit * MIB)
        assert 256 * MIB <= heap <= max(limit * 0.6, 264) * MIB
