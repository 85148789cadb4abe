"""`bulkhead probe` shows what `host.probe_host` found."""

from __future__ import annotations

import json
import socket
from argparse import Namespace
from pathlib import Path

import pytest

from app.cli import host, operate
from app.cli.host import LayerReport

FOUND = [
    LayerReport("seccomp", True, "filters can be loaded"),
    LayerReport("swap_limit", False, "no memsw limit", "boot with swapaccount=1", optional=True),
]


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "probe_host", lambda _, *, disks_needed: FOUND)
    for name in ("BULKHEAD_PROCESS__ACCEPT_MISSING", "BULKHEAD_BOXLITE__URL", "BOXLITE_REST_URL", "BOXLITE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_missing_layer_is_shown_with_its_cure_and_fails(capfd: pytest.CaptureFixture[str]) -> None:
    assert operate.probe(Namespace(json=False)) == 1
    shown = capfd.readouterr().out.splitlines()
    rows = [line.split()[:3] for line in shown]
    assert rows[:3] == [
        ["RUNTIME", "LAYER", "AVAILABLE"],
        ["process", "seccomp", "yes"],
        ["process", "swap_limit", "no"],
    ]
    assert [row[:2] for row in rows[3:]] == [["boxlite", "server"], ["boxlite", "kvm"]]
    assert shown[2].endswith("boot with swapaccount=1")


def test_layer_that_the_operator_gave_up_by_name_is_no_failure(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKHEAD_PROCESS__ACCEPT_MISSING", "swap_limit")
    assert operate.probe(Namespace(json=False)) == 0
    assert capfd.readouterr().out.splitlines()[2].split()[1:3] == ["swap_limit", "accepted"]


def test_json_is_a_list_of_layers(capfd: pytest.CaptureFixture[str]) -> None:
    assert operate.probe(Namespace(json=True)) == 1
    found = json.loads(capfd.readouterr().out)
    assert [layer["layer"] for layer in found] == ["seccomp", "swap_limit", "server", "kvm"]
    assert found[1]["cure"] == "boot with swapaccount=1"
    assert [(layer["runtime"], layer["needed"]) for layer in found[1:]] == [
        ("process", True),
        ("boxlite", False),
        ("boxlite", False),
    ]


def test_boxlite_server_counts_once_it_is_configured(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKHEAD_PROCESS__ACCEPT_MISSING", "swap_limit")
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("BULKHEAD_BOXLITE__URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert operate.probe(Namespace(json=True)) == 1
    server = json.loads(capfd.readouterr().out)[2]
    assert (server["layer"], server["available"], server["needed"]) == ("server", False, True)
    monkeypatch.setenv("BULKHEAD_BOXLITE__ENABLED", "false")
    assert operate.probe(Namespace(json=True)) == 0


@pytest.mark.parametrize(
    ("above", "processes", "available"),
    [("cpu cpuset memory pids", "", True), ("cpu memory pids", "", False), ("cpu cpuset memory pids", "7\n", False)],
    ids=["they have it", "nobody has it", "a process is in the way"],
)
def test_controller_that_the_service_turns_on_in_the_groups_above_is_available(
    tmp_path: Path, above: str, processes: str, available: bool
) -> None:
    """As systemd leaves version 2 for a login session."""
    session = tmp_path / "user.slice/session-1.scope"
    session.mkdir(parents=True)
    (session / "cgroup.controllers").write_text("cpu memory pids\n")
    for group in (tmp_path, tmp_path / "user.slice"):
        (group / "cgroup.controllers").write_text(f"{above}\n")
        (group / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (tmp_path / "user.slice/cgroup.type").write_text("domain\n")  # the root group has no such file
    (tmp_path / "user.slice/cgroup.procs").write_text(processes)
    mounts = f"31 24 0:27 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    found = {each.layer: each.available for each in host._cgroups(mounts, "0::/user.slice/session-1.scope\n")}
    assert found["cgroup_cpuset"] is available
    assert found["cgroup_memory"] and found["cgroup_pids"] and found["cgroup_cpu"]
    assert (tmp_path / "user.slice/cgroup.subtree_control").read_text() == "cpu memory pids\n", "it only looks"
