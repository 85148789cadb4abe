"""What executions leave behind: memory, descriptors, disk. None of it without bound, and none of it at others' cost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel import host
from tests.require import require
from tests.service import Service

SMALL = {
    "BULKHEAD_CAPACITY__EXECUTIONS_RUNNING": "16",
    "BULKHEAD_CAPACITY__ENDED_OUTPUT_MIB": "4",
    "BULKHEAD_SPILL_MIB": "64",
}
CHANNEL = 256 * 1024  # what memory holds of one
FEW = 8  # descriptors: connections that are being closed


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with little of everything, since its memory and descriptors are counted."""
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    with Service(tmp_path_factory.mktemp("small"), SMALL) as running:
        yield running


def start(service: Service, sandbox: str, *command: str) -> tuple[int, Any]:
    return service.call("POST", f"/sandboxes/{sandbox}/executions", {"command": list(command)})


def test_ended_executions_hold_no_descriptor_and_little_memory(small: Service) -> None:
    gateway, sandbox = small.children()["gateway"], small.create()
    command = ("sh", "-c", f"head -c {CHANNEL} /dev/zero; head -c {CHANNEL} /dev/zero >&2")
    small.run(sandbox, *command)
    descriptors, memory = len(host.descriptors(gateway)), host.resident_mib(gateway)
    ended: list[str] = []
    for _ in range(120):  # 60 MiB
        status, answer = start(small, sandbox, *command)
        assert status == 201, answer
        ended.append(f"/sandboxes/{sandbox}/executions/{answer['id']}")
        assert small.ended(ended[-1])["exit"]["code"] == 0
    host.until(lambda: len(host.descriptors(gateway)) <= descriptors + 1 + FEW, "none of them has any")
    assert host.resident_mib(gateway) - memory <= 16
    assert small.output(ended[-1]) == small.output(ended[-1], "stderr") == bytes(CHANNEL)
    first = small.call("GET", ended[0])[1]  # its share of the disk is 32 MiB
    assert first["output"]["stdout"] == {"bytes": CHANNEL, "dropped_bytes": CHANNEL}
    assert small.output(ended[0]) == b""
    assert small.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
    host.until(lambda: len(host.descriptors(gateway)) <= descriptors + FEW, "its file is closed")


def test_a_sandbox_that_used_its_share_of_the_disk_is_refused_and_others_go_on(small: Service) -> None:
    greedy, other = small.create(), small.create()
    for _ in range(4):
        status, answer = start(small, greedy, "sh", "-c", f"head -c {8 << 20} /dev/zero; exec sleep 1000")
        assert status == 201, answer
        path = f"/sandboxes/{greedy}/executions/{answer['id']}"
        host.until(lambda at=path: small.call("GET", at)[1]["output"]["stdout"]["bytes"] == 8 << 20, "it printed")  # type: ignore[misc]
    status, refused = start(small, greedy, "true")
    assert (status, refused["budget"], refused["holder"]) == (429, "MiB of stored output", "sandbox")
    assert small.run(other, "head", "-c", str(4 << 20), "/dev/zero")["output"]["stdout"]["dropped_bytes"] == 0
    assert small.call("POST", "/run", {"command": ["echo", "fine"]})[1]["stdout"] == "fine\n"
    for sandbox in (greedy, other):
        assert small.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


def test_descriptors_for_what_is_left_behind_are_bounded(small: Service) -> None:
    gateway, sandbox, other = small.children()["gateway"], small.create(), small.create()
    before, left = len(host.descriptors(gateway)), list[str]()
    for _ in range(16):
        status, answer = start(small, sandbox, "sh", "-c", "sleep 1000 & exit 0")
        assert status == 201, answer
        left.append(f"/sandboxes/{sandbox}/executions/{answer['id']}")
        assert small.ended(left[-1])["exit"]["code"] == 0
    status, refused = start(small, sandbox, "true")
    assert (status, refused["type"]) == (429, "/problems/capacity_exceeded")
    assert refused["budget"] == "executions that run or have left processes behind"
    assert refused["holder"] == "sandbox"
    host.until(lambda: len(host.descriptors(gateway)) <= before + 2 * 16 + FEW, "each has two at most")
    assert small.run(other, "echo", "fine")["stdout"] == "fine\n"
    assert small.call("DELETE", left[0])[0] == 204
    assert small.run(sandbox, "echo", "fine")["stdout"] == "fine\n"
    for each in (sandbox, other):
        assert small.call("DELETE", f"/sandboxes/{each}")[0] == 204
    host.until(lambda: len(host.descriptors(gateway)) <= before + FEW, "nothing of them is held")
