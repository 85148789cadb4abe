"""kill -9 of the gateway of a whole service while sandboxes with disks run, end and are being made: nothing stays."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.serving.slot import UIDS
from app.settings.process import ProcessSettings
from tests.kernel import host
from tests.kernel.talk import start
from tests.kernel.test_disks import loops, nothing_stays, operators_disk
from tests.kernel.test_standalone import folder, gateway, launcher, launcher_of
from tests.require import require
from tests.service import PATIENCE, Service

__all__ = ["folder"]  # a fixture

CREATE = {"storage": "disk", "limits": {"disk_mib": 16, "memory_mib": 64}}
WRITE = "dd if=/dev/zero of=/workspace/file bs=64k count=64 2>/dev/null; echo up; exec sleep 1000"
MAKING = 4
MOMENTS = (0.01, 0.03)  # seconds from the last request to the kill: a create takes some 20 ms


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    require("root", os.geteuid() == 0, "only root mounts")
    require("loop", Path("/dev/loop-control").exists(), "the host has no loop devices")
    with operators_disk(tmp_path_factory.mktemp("disks")) as place:
        yield place


def settings(operator: Path) -> dict[str, str]:
    return {"BULKHEAD_PROCESS__STORAGE_DIR": str(operator / "storage"), "BULKHEAD_PROCESS__STORAGE_RESERVE_MIB": "64"}


def kill_amid_creates(service: Service, pid: int, operator: Path, seconds: float) -> int:
    """Two sandboxes with files on their disks run, and a third is being deleted. Returns how many creates had no answer
    yet."""
    running = [service.create(**CREATE) for _ in range(3)]
    for sandbox in running:
        start(service, sandbox, "sh", "-c", WRITE).saw(b"up")
    assert len(loops(operator)) == len(running), "the control: disks are seen"
    with contextlib.ExitStack() as stack:
        asked = []
        for method, path in (*[("POST", "/sandboxes")] * MAKING, ("DELETE", f"/sandboxes/{running[2]}")):
            connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port)))
            body = json.dumps(CREATE) if method == "POST" else None
            connection.request(method, path, body, {"content-type": "application/json"} if body else {})
            asked.append(connection)
        threading.Event().wait(seconds)
        os.kill(pid, signal.SIGKILL)
        return sum(not is_answered(connection) for connection in asked[:MAKING])


def is_answered(connection: http.client.HTTPConnection) -> bool:
    try:
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return False
    assert status == 201
    return True


def test_killed_gateway_of_a_service_leaves_no_disk_and_nothing_else(operator: Path, tmp_path: Path) -> None:
    service = Service(tmp_path, settings(operator))
    with nothing_stays(operator):
        try:
            service.wait_listening()
            first, gateway_pid = host.first_uid(service), service.children()["gateway"]
            assert kill_amid_creates(service, gateway_pid, operator, MOMENTS[0]) > 0, "some were being made"
            assert service.process.wait(PATIENCE) == 1
        finally:
            service.stop()
        with host.kept(first):
            host.until(lambda: host.left_of(first) == [], "no process, mount, group or file stays")
    assert list((operator / "storage").iterdir()) == []


def test_launcher_that_lives_on_leaves_nothing_of_a_killed_gateway(operator: Path, folder: Path) -> None:
    unanswered = 0
    with nothing_stays(operator), launcher(folder / "launcher.sock", **settings(operator)) as process:
        for seconds in MOMENTS:
            with gateway(folder / str(seconds), folder / "launcher.sock") as service:
                uid = host.host_uid(service, service.create())
                first = uid - (uid - ProcessSettings().uid_base) % UIDS
                unanswered += kill_amid_creates(service, service.process.pid, operator, seconds)
                service.process.wait(PATIENCE)
            pid = launcher_of(process)
            host.until(lambda first=first, pid=pid: not host.sandbox_groups(pid, first), "no group stays")  # type: ignore[misc]
            host.until(lambda: loops(operator) == [], "every loop device is free")
            host.until(lambda first=first: len(host.sandbox_processes(first)) <= 1, "only the clone made ahead stays")  # type: ignore[misc]
        assert unanswered > 0, "some were being made"
        assert process.poll() is None
    with host.kept(first):
        assert host.left_of(first) == []
