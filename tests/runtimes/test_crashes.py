"""Real microVMs, and everything around them killed in turn: the gateway, the server, the box itself."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.boxlite.machine import Machine
from tests.kernel.talk import start
from tests.runtimes.places import Place, place_of, service_for
from tests.service import Service

ANSWER = re.compile(rb"Directory listing|HTTP/1")  # a page, or what wget says of another status


@pytest.fixture
def service(machine: Machine, tmp_path: Path) -> Iterator[Service]:
    with service_for(tmp_path, machine.url, machine.key) as running:
        yield running


@pytest.fixture
def place(service: Service) -> Place:
    return place_of("machine", service, "boxlite")


def ours(machine: Machine, data: Path) -> list[dict[str, Any]]:
    """The boxes of the service with that data folder."""
    prefix = f"bh-{(data / 'instance').read_text().strip()}-"
    return [box for box in machine.call("GET", "/v1/boxes").json()["boxes"] if (box["name"] or "").startswith(prefix)]


def wait(condition: Callable[[], bool], what: str, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s not yet: {what}"
        time.sleep(0.1)  # other processes tell it, and only when they are asked


def test_gateway_that_is_killed_leaves_boxes_that_its_next_life_removes_and_nobody_elses(
    machine: Machine, tmp_path: Path
) -> None:
    stranger = machine.call("POST", "/v1/boxes", {"name": "bh-stranger-1", "rootfs_path": "/images/busybox"}).json()
    with service_for(tmp_path, machine.url, machine.key) as first:
        place = place_of("machine", first, "boxlite")
        running = place.start(place.create(id="room"), "sleep", "1000")
        assert running.show()["state"] == "running"
        os.kill(first.children()["gateway"], signal.SIGKILL)
        first.process.wait(60)
    assert [box["status"] for box in ours(machine, tmp_path)] == ["running"]
    with service_for(tmp_path, machine.url, machine.key) as second:
        wait(lambda: not ours(machine, tmp_path), "the box of the earlier life is gone")
        assert place_of("machine", second, "boxlite").create(id="room") == "room"
    assert ours(machine, tmp_path) == []  # an orderly end leaves none
    assert machine.call("GET", f"/v1/boxes/{stranger['box_id']}").json()["status"] == "configured"
    machine.call("DELETE", f"/v1/boxes/{stranger['box_id']}")


def test_server_that_is_killed_and_started_again_loses_the_execution_and_not_the_sandbox(
    machine: Machine, place: Place
) -> None:
    sandbox = place.create()
    running = place.start(sandbox, "sh", "-c", "echo begun; echo $$ >/workspace/pid; sleep 1000")
    running.saw(b"begun\n")
    machine.kill_server()
    ended = running.exit()
    assert (ended["reason"], ended["code"], ended["signal"]) == ("lost", None, None)
    assert running.out() == b"begun\n"
    machine.wait_for_server()
    wait(lambda: place.service.call("GET", "/readyz")[0] == 200, "the service sees the server again")
    alive = place.start(sandbox, "sh", "-c", "kill -0 $(cat /workspace/pid)")
    assert alive.exit()["code"] == 1, "the lost command runs on, out of everybody's reach"
    place.delete(sandbox)


def test_server_that_is_gone_is_told_and_creates_are_refused(machine: Machine, place: Place) -> None:
    """How soon: tests/boxlite/test_readiness.py, where no emulated machine takes the time."""
    with machine.without_server():
        wait(lambda: place.service.call("GET", "/readyz")[0] == 503, "readyz tells it")
        status, problem = place.service.call("POST", "/sandboxes", {"runtime": "boxlite"})
        assert (status, problem["type"]) == (503, "/problems/backend_unavailable")
        _, runtimes = place.service.call("GET", "/runtimes")
        (boxlite,) = [item for item in runtimes["items"] if item["name"] == "boxlite"]
        assert (boxlite["enabled"], boxlite["available"]) == (True, False)
        assert boxlite["reason"]
    wait(lambda: place.service.call("GET", "/readyz")[0] == 200, "readyz tells that it is back")


def test_box_that_is_killed_from_outside_is_a_failed_sandbox_with_lost_executions(
    machine: Machine, place: Place, tmp_path: Path
) -> None:
    sandbox = place.create()
    running = place.start(sandbox, "sh", "-c", "echo begun; sleep 1000")
    running.saw(b"begun\n")
    box = place.show(sandbox)["isolation"]["box_id"]
    machine.kill_box(box)
    ended = running.exit()
    assert ended["reason"] == "lost"
    wait(lambda: place.show(sandbox)["state"] == "failed", "the sandbox is failed")
    assert "box" in place.show(sandbox)["state_reason"]
    status, problem = place.service.call("POST", f"/sandboxes/{sandbox}/executions", {"command": ["true"]})
    assert (status, problem["state"]) == (409, "failed")
    wait(lambda: not ours(machine, tmp_path), "its box is removed")
    place.delete(sandbox)


def test_box_that_is_killed_while_nothing_runs_in_it_is_noticed(machine: Machine, place: Place) -> None:
    sandbox = place.create()
    machine.kill_box(place.show(sandbox)["isolation"]["box_id"])
    wait(lambda: place.show(sandbox)["state"] == "failed", "the sandbox is failed")
    place.delete(sandbox)


def test_delete_while_it_boots_leaves_nothing(machine: Machine, place: Place, tmp_path: Path) -> None:
    status, answer = place.service.call("POST", "/sandboxes?wait_seconds=0", {"runtime": "boxlite", "id": "early"})
    assert (status, answer["state"]) == (201, "creating")
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(
            place.service.call, "POST", "/sandboxes/early/executions", {"command": ["true"]}, None, 120
        )
        place.delete("early")
        assert waiting.result()[0] == 409
    assert ours(machine, tmp_path) == []


def test_direct_network_reaches_what_is_allowed_and_neither_gateway_nor_server_nor_metadata(
    machine: Machine, tmp_path: Path
) -> None:
    """First the way without rules, made by hand: what must not be reached does answer there, so that silence later on
    means something. An answer is any line of HTTP, whatever its status."""
    probe = "wget -q -T 4 -O - http://{}/ 2>&1 | head -c 300; echo"
    open_box = machine.call(
        "POST",
        "/v1/boxes",
        {"name": "open-one", "rootfs_path": "/images/busybox", "network": {"mode": "enabled"}},
    ).json()["box_id"]
    machine.run("python3 -m http.server --bind 127.0.0.1 8999 >/dev/null 2>&1 & echo $! >/run/inner.pid")
    machine.run("python3 -m http.server --bind 10.0.2.15 8998 >/dev/null 2>&1 & echo $! >/run/allowed.pid")
    machine.run(
        "ip addr add 169.254.169.254/32 dev lo 2>/dev/null; "
        "python3 -m http.server --bind 169.254.169.254 80 >/dev/null 2>&1 & echo $! >/run/meta.pid"
    )
    try:
        _reaches(machine, open_box, probe.format("192.168.127.254:8999"))
        _reaches(machine, open_box, probe.format("10.0.2.15:8998"))
        allow = {"BULKHEAD_BOXLITE__DIRECT_ALLOW": "10.0.2.15,*.example.org"}
        with service_for(tmp_path, machine.url, machine.key, **allow) as service:
            place = place_of("machine", service, "boxlite")
            assert place.promises("network_direct")
            for rule, slug in (("169.254.169.254", "invalid_request"), ("10.0.2.0/24", "policy_too_broad")):
                body = {"runtime": "boxlite", "policy": {"network": {"mode": "direct", "allow": [rule]}}}
                status, problem = service.call("POST", "/sandboxes", body)
                assert (status, problem["type"]) == (422, f"/problems/{slug}"), problem
            sandbox = place.create(policy={"network": {"mode": "direct", "allow": ["10.0.2.15"]}})
            assert place.show(sandbox)["policy"]["network"] == {"mode": "direct", "allow": ["10.0.2.15"]}
            allowed = start(service, sandbox, "sh", "-c", probe.format("10.0.2.15:8998"))
            assert allowed.exit()["code"] == 0
            assert b"Directory listing" in allowed.out()
            forbidden = {
                "192.168.127.254:8999": True,
                "192.168.127.254:8100": True,  # the server's API
                f"10.0.2.2:{service.port}": True,  # the gateway, on the loopback of the machine's host
                "169.254.169.254:80": False,  # seen: link-local is refused to a box without rules, too
                "127.0.0.1:8999": False,
            }
            assert "Directory listing" in machine.run("curl -fsS http://169.254.169.254/")
            for target, answers_without_rules in forbidden.items():
                if answers_without_rules:
                    _reaches(machine, open_box, probe.format(target))
                tried = start(service, sandbox, "sh", "-c", probe.format(target))
                assert tried.exit()["code"] == 0
                assert not ANSWER.search(tried.out()), (target, tried.out())
            # Seen: the gateway of the box's own virtual network says 404 on every port, with rules and without.
            tried = start(service, sandbox, "sh", "-c", probe.format("192.168.127.1:8999"))
            assert tried.exit()["code"] == 0
            assert b"Directory listing" not in tried.out()
            place.delete(sandbox)
    finally:
        machine.run(
            "kill $(cat /run/inner.pid /run/allowed.pid /run/meta.pid); ip addr del 169.254.169.254/32 dev lo; true"
        )
        machine.call("POST", f"/v1/boxes/{open_box}/stop")
        machine.call("DELETE", f"/v1/boxes/{open_box}?force=true")


def _reaches(machine: Machine, box: str, script: str) -> None:
    """Through the server's own API, without us."""
    from websockets.sync.client import connect

    for _ in range(3):  # the first boots the box, and a busy emulator may take longer than the server waits
        execution = machine.call("POST", f"/v1/boxes/{box}/exec", {"command": "sh", "args": ["-c", script]})
        if execution.status_code != 503:
            break
    assert execution.status_code == 201, execution.text
    url = machine.url.replace("http", "ws", 1) + f"/v1/boxes/{box}/executions/{execution.json()['execution_id']}/attach"
    said = b""
    with connect(url, additional_headers=machine.headers, proxy=None, open_timeout=150) as socket:
        for message in socket:
            said += message if isinstance(message, bytes) else b""
    assert ANSWER.search(said), said
