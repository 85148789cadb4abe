"""`storage` as a client meets it, through the whole service: runs, uploads, receipts, and what is refused."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.test_disks import operators_disk
from tests.require import require
from tests.service import PATIENCE, Service

MIB = 1 << 20
OPERATOR_MIB, RESERVE_MIB = 400, 64


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    require("root", os.geteuid() == 0, "only root mounts")
    require("loop", Path("/dev/loop-control").exists(), "the host has no loop devices")
    with operators_disk(tmp_path_factory.mktemp("operator"), OPERATOR_MIB) as place:
        env = {
            "BULKHEAD_PROCESS__STORAGE_DIR": str(place / "storage"),
            "BULKHEAD_PROCESS__STORAGE_RESERVE_MIB": str(RESERVE_MIB),
        }
        with Service(tmp_path_factory.mktemp("data"), env) as running:
            yield running


def run(service: Service, *command: str, **body: Any) -> dict[str, Any]:
    status, answer = service.call("POST", "/run", {"command": list(command), **body}, timeout=PATIENCE)
    assert status == 200, answer
    return dict(answer)


def upload(service: Service, sandbox: str, size: int) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("PUT", f"/sandboxes/{sandbox}/files?path=f", bytes(size))
        answer = connection.getresponse()
        said = answer.read()
        return answer.status, json.loads(said) if said else {}


WRITE = "head -c 200M /dev/zero > big && wc -c < big"


def test_files_of_a_run_take_memory_or_a_disk_as_it_asks(disks: Service) -> None:
    small = {"memory_mib": 64}
    on_disk = run(disks, "sh", "-c", WRITE, storage="disk", limits={**small, "disk_mib": 220})
    assert (on_disk["exit"]["code"], on_disk["stdout"]) == (0, f"{200 * MIB}\n")
    assert on_disk["exit"]["max_memory_bytes"] <= 64 * MIB
    in_memory = run(disks, "sh", "-c", WRITE, storage="memory", limits=small)
    assert "No space left on device" in in_memory["stderr"]


def test_upload_beyond_the_disk_is_refused_and_the_memory_is_still_there(disks: Service) -> None:
    sandbox = disks.create(storage="disk", limits={"memory_mib": 64, "disk_mib": 32})
    try:
        status, problem = upload(disks, sandbox, 40 * MIB)
        assert (status, problem["type"], problem["limit"]) == (507, "/problems/disk_full", 32 * MIB)
        assert upload(disks, sandbox, 31 * MIB)[0] == 201
        touched = disks.run(sandbox, "dd", "if=/dev/zero", "of=/dev/null", "bs=56M", "count=1")
        assert (touched["exit"]["reason"], touched["exit"]["code"]) == ("exited", 0)
        used = disks.call("GET", f"/sandboxes/{sandbox}/usage")[1]
        assert 31 * MIB <= used["disk_bytes"] < 32 * MIB
    finally:
        disks.call("DELETE", f"/sandboxes/{sandbox}")


def test_receipt_says_where_files_are_and_how_much_room_they_have(disks: Service) -> None:
    for storage, file_system, least in (("memory", "tmpfs", 48 * MIB), ("disk", "ext4", 48 * MIB)):
        limits = {"memory_mib": 64, "disk_mib": 48}
        status, made = disks.call("POST", "/sandboxes", {"storage": storage, "limits": limits})
        assert status == 201, made
        told = made["isolation"]
        assert (made["storage"], told["storage"]["kind"], told["storage"]["file_system"]) == (
            storage,
            storage,
            file_system,
        )
        assert least <= told["storage"]["bytes"] <= least * 1.05 + 4 * MIB
        assert told["cgroup"]["memory_bytes"] == 64 * MIB
        disks.call("DELETE", f"/sandboxes/{made['id']}")


def test_disk_that_the_operator_has_no_room_for_is_507_and_nothing_is_left(disks: Service) -> None:
    body = {"storage": "disk", "limits": {"disk_mib": OPERATOR_MIB}}
    for path, more in (("/sandboxes", {}), ("/run", {"command": ["true"]})):
        status, problem = disks.call("POST", path, {**body, **more})
        assert (status, problem["type"], problem["limit"]) == (507, "/problems/disk_full", OPERATOR_MIB * MIB)
    assert disks.call("GET", "/sandboxes?state=running")[1]["items"] == []
    assert run(disks, "true", storage="disk", limits={"disk_mib": 32})["exit"]["code"] == 0


def test_host_that_can_make_no_disks_refuses_them_by_name_and_serves_the_rest(tmp_path: Path) -> None:
    """A tmpfs reserves no room."""
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        env = {"BULKHEAD_PROCESS__STORAGE_DIR": folder}
        with Service(tmp_path, env) as running:
            for _ in range(2):  # before and after the gateway has asked the launcher
                status, problem = running.call("POST", "/sandboxes", {"storage": "disk"})
                assert (status, problem["missing"]) == (422, ["storage_disk"])
            assert run(running, "true")["exit"]["code"] == 0
            (process,) = (item for item in running.call("GET", "/runtimes")[1]["items"] if item["name"] == "process")
            assert "storage_memory" in process["capabilities"]
            assert "storage_disk" not in process["capabilities"]
