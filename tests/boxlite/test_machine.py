"""The machine is what other tests take it for: real boxes, a server that can be broken, and an end for all of it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.boxlite.machine import IMAGE, Machine, not_built
from tests.kernel.host import until
from tests.require import require

PROJECT = Path(__file__).resolve().parents[2]
REAPS_AND_ENDS = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"
BOOT_TOO_SLOW = "timed out after 30s waiting for it to become ready"  # the server's only limit, and it has no setting


@pytest.fixture
def box(machine: Machine) -> Iterator[str]:
    """A running busybox box without a network."""
    made = machine.call(
        "POST",
        "/v1/boxes",
        {
            "rootfs_path": IMAGE,
            "network": {"mode": "disabled"},
            "cpus": 1,
            "memory_mib": 128,
            "disk_size_gb": 1,
            "cmd": ["sh", "-c", REAPS_AND_ENDS],
        },
    )
    assert made.status_code == 201, made.text
    box_id = str(made.json()["box_id"])
    try:
        started = machine.call("POST", f"/v1/boxes/{box_id}/start")
        if BOOT_TOO_SLOW in started.text:
            started = machine.call("POST", f"/v1/boxes/{box_id}/start")
        assert started.status_code == 200, started.text
        yield box_id
    finally:
        machine.call("POST", f"/v1/boxes/{box_id}/stop")
        machine.call("DELETE", f"/v1/boxes/{box_id}?force=true")


def begin(machine: Machine, box: str, *command: str) -> str:
    answer = machine.call("POST", f"/v1/boxes/{box}/exec", {"command": command[0], "args": command[1:]})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["execution_id"])


def attach(machine: Machine, box: str, execution: str) -> ClientConnection:
    address = machine.url.replace("http", "ws", 1)
    url = f"{address}/v1/boxes/{box}/executions/{execution}/attach"
    return connect(url, additional_headers=machine.headers, proxy=None, open_timeout=150)


def read_to_end(socket: ClientConnection) -> tuple[bytes, int | None]:
    """(stdout, exit code)."""
    out, exit_code = b"", None
    try:
        while True:
            frame = socket.recv(timeout=150)
            if isinstance(frame, bytes):
                out += frame[1:] if frame[:1] == b"\x01" else b""
            elif (event := json.loads(frame))["type"] == "exit":
                exit_code = event["exit_code"]
    except ConnectionClosed:
        return out, exit_code


def run(machine: Machine, box: str, *command: str) -> tuple[bytes, int | None]:
    with attach(machine, box, begin(machine, box, *command)) as socket:
        return read_to_end(socket)


def test_server_answers_who_has_the_key_and_nobody_else(machine: Machine) -> None:
    assert machine.call("GET", "/v1/boxes").status_code == 200
    assert Machine(machine.url, "another", machine.control).call("GET", "/v1/boxes").status_code == 401


def test_control_answers_who_has_the_key_and_nobody_else(machine: Machine) -> None:
    assert machine.run("id -u") == "0\n"
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        Machine(machine.url, "another", machine.control).run("id -u")


def test_box_runs_a_kernel_of_its_own(machine: Machine, box: str) -> None:
    out, exit_code = run(machine, box, "uname", "-r")
    assert exit_code == 0
    assert out.decode() != machine.run("uname -r") != os.uname().release + "\n"


def test_guest_of_the_probe_boots_where_kvm_boots_boxes(machine: Machine) -> None:
    """Where a test of the probe runs there is mostly no usable /dev/kvm, so only here its yes can be seen."""
    module = base64.b64encode((PROJECT / "app/cli/kvm.py").read_bytes()).decode()
    ask = "import sys; sys.path.insert(0, '/run'); import probed; print(*probed.STEPS, probed.try_guest(), sep='')"
    said = machine.run(f'echo {module} | base64 -d >/run/probed.py && python3 -B -c "{ask}"')
    steps, attempt = said.split("Attempt")
    assert attempt == f"(reached='{steps}', refusal=None)\n"


def test_killed_server_comes_back_and_finds_its_box(machine: Machine, box: str) -> None:
    machine.kill_server()
    machine.wait_for_server()
    assert machine.call("GET", f"/v1/boxes/{box}").json()["status"] == "running"
    assert run(machine, box, "echo", "alive") == (b"alive\n", 0)


def test_server_that_is_held_away_is_away_until_it_is_let_go(machine: Machine) -> None:
    with machine.without_server(), pytest.raises(httpx.TransportError):
        machine.call("GET", "/v1/config")
    assert machine.call("GET", "/v1/config").status_code == 200


def test_virtual_machine_of_a_box_that_is_killed_is_seen(machine: Machine, box: str) -> None:
    with attach(machine, box, begin(machine, box, "sleep", "1000")) as socket:
        machine.kill_box(box)
        assert read_to_end(socket) == (b"", -1)
    until(lambda: machine.call("GET", f"/v1/boxes/{box}").json()["status"] == "stopped", "the server sees it")


OWNER = """
import sys
from tests.boxlite.machine import MachineStart
print(MachineStart().process.pid, flush=True)
sys.stdin.read()
"""


def test_machine_ends_with_a_process_that_is_killed() -> None:
    reason = not_built()
    require("boxlite", not reason, f"{reason}; `make boxlite` builds what is needed")
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        serve = int(owner.stdout.readline())
        until(lambda: "qemu-system-x86" in {name_of(pid) for pid in below(serve)}, "the virtual machine runs")
        all_of_it = [serve, *below(serve)]
        owner.send_signal(signal.SIGKILL)
        until(lambda: not [pid for pid in all_of_it if name_of(pid)], "everything has ended")


def name_of(pid: int) -> str:
    """Empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def below(pid: int) -> list[int]:
    """Children, their children and so on."""
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [each for child in children for each in (child, *below(child))]
