"""The processors of a sandbox: as many as its limit, spread over the host's, and none that it was not given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.require import require
from tests.service import Service

OWN = os.sched_getaffinity(0)
# Asks for all processors, then for each one alone: what the kernel said, and what is in force after it.
ASK = """
import json, os, sys
every = json.loads(sys.argv[1])
def ask(cpus):
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        return error.errno
    return sorted(os.sched_getaffinity(0))
print(json.dumps({"before": sorted(os.sched_getaffinity(0)), "all": ask(every), "each": [ask([c]) for c in every]}))
"""
NO_SUCH = 22  # EINVAL: none of them may be used


@pytest.fixture(autouse=True)
def processors() -> None:
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    require("processors", len(OWN) > 1, "with one there is nothing to choose")


@pytest.fixture
def two(service: Service) -> Iterator[str]:
    sandbox = service.create(limits={"cpus": 1.5})
    yield sandbox
    service.call("DELETE", f"/sandboxes/{sandbox}")


def cpus_of(service: Service, sandbox: str) -> str:
    return str(service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]["cgroup"]["cpuset_cpus"])


def asked(service: Service, sandbox: str) -> dict[str, Any]:
    said = service.run(sandbox, "python3", "-c", ASK, json.dumps(sorted(OWN)))["stdout"]
    return dict(json.loads(said))


def test_mask_is_the_limit_rounded_up_and_the_receipt_tells_it(service: Service, sandbox: str, two: str) -> None:
    for limited, count in ((sandbox, 1), (two, 2)):
        assert service.run(limited, "nproc")["stdout"] == f"{count}\n"
        said = service.run(limited, "grep", "Cpus_allowed_list", "/proc/self/status")["stdout"]
        assert said.split() == ["Cpus_allowed_list:", cpus_of(service, limited)]


def test_mask_cannot_be_widened(service: Service, sandbox: str) -> None:
    """Control: a mask without a control group can."""
    narrowed = f"import os; os.sched_setaffinity(0, [{min(OWN)}])\n{ASK}"
    argv = [sys.executable, "-c", narrowed, json.dumps(sorted(OWN))]
    control = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert control == {"before": [min(OWN)], "all": sorted(OWN), "each": [[cpu] for cpu in sorted(OWN)]}
    given = [int(cpus_of(service, sandbox))]
    each = [[cpu] if cpu in given else NO_SUCH for cpu in sorted(OWN)]
    assert asked(service, sandbox) == {"before": given, "all": given, "each": each}


def test_mask_can_be_narrowed(service: Service, two: str) -> None:
    said = asked(service, two)
    assert len(said["before"]) == 2
    assert [cpus for cpus in said["each"] if cpus != NO_SUCH] == [[cpu] for cpu in said["before"]]


def test_eight_sandboxes_of_one_cpu_use_all_processors(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        sandboxes = [service.create(limits={"cpus": 1}) for _ in range(8)]
        given = [cpus_of(service, sandbox) for sandbox in sandboxes]
        used = Counter(given)
        assert len(used) == min(8, len(OWN))
        assert max(used.values()) - min(used.values()) <= 1
        on_one = [sandbox for sandbox, cpu in zip(sandboxes, given, strict=True) if cpu == given[0]]
        for sandbox in on_one:
            service.call("DELETE", f"/sandboxes/{sandbox}")
        again = [cpus_of(service, service.create(limits={"cpus": 1})) for _ in on_one]
        assert again == [given[0]] * len(on_one), "what ended sandboxes leave is used again"


def test_service_that_may_use_one_processor_gives_no_other(tmp_path: Path) -> None:
    last = str(max(OWN))
    with Service(tmp_path, prefix=("taskset", "-c", last)) as service:
        assert [cpus_of(service, service.create()) for _ in range(3)] == [last] * 3
