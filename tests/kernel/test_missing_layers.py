"""A host that lacks a layer: a create is refused by its name, unless the operator gave it up by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import host
from tests.kernel.talk import start
from tests.kernel.without import prefix
from tests.require import require
from tests.service import PATIENCE, PROJECT, Service, clean_environment

# What an operator gives up with a layer: Landlock brings three.
OPTIONAL = {
    "landlock": ["landlock", "landlock_tcp", "landlock_scopes"],
    "user_namespace": ["user_namespace"],
    "cgroup_memory": ["cgroup_memory", "swap_limit"],
    "cgroup_pids": ["cgroup_pids"],
    "cgroup_cpu": ["cgroup_cpu"],
    "cgroup_cpuset": ["cgroup_cpuset"],
}
FORK = """
import os, signal
count = 0
while count < 40:
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        signal.pause()
    count += 1
print(count)
"""
REQUIRED = {"network_namespace": "enter_network_namespace", "seccomp": "filter_system_calls"}


@pytest.fixture(autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "a service that is started as root")
    version_1 = any(" - cgroup " in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
    require("cgroup1", version_1, "the controllers are taken away one by one, as version 1 mounts them")


@pytest.mark.parametrize("layer", OPTIONAL)
def test_a_create_is_refused_and_names_the_layer(tmp_path: Path, layer: str) -> None:
    with Service(tmp_path, prefix=prefix(layer)) as service:
        first = host.first_uid(service)
        status, problem = service.call("POST", "/sandboxes", {})
        assert (status, problem["type"], problem["layer"]) == (503, "/problems/isolation_unavailable", layer)
        assert layer in problem["detail"]
        status, ready = service.call("GET", "/readyz")
        assert (status, ready["type"], ready["layer"]) == (503, "/problems/isolation_unavailable", layer)
        runtime = service.call("GET", "/runtimes")[1]["items"][0]
        assert runtime["available"] is False
        assert layer in runtime["reason"]
        assert service.call("GET", "/sandboxes")[1]["items"] == []
        assert host.sandbox_processes(first) == []


@pytest.mark.parametrize("layer", OPTIONAL)
def test_a_layer_that_was_given_up_by_name_is_in_the_receipt(tmp_path: Path, layer: str) -> None:
    given_up = {"BULKHEAD_PROCESS__ACCEPT_MISSING": json.dumps(OPTIONAL[layer])}
    with Service(tmp_path, given_up, prefix(layer)) as service:
        assert service.call("GET", "/readyz")[0] == 200
        sandbox = service.create(limits={"memory_mib": 64, "processes": 16})
        receipt = service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]
        assert sorted(receipt["missing_layers"]) == sorted(OPTIONAL[layer])
        assert receipt["no_new_privs"] is True
        assert receipt["seccomp"]["mode"] == "filter"
        assert set(receipt["capabilities"].values()) == {0}
        check_the_rest(service, sandbox, receipt, layer)
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
        assert service.stop() == 0


def check_the_rest(service: Service, sandbox: str, receipt: dict[str, Any], layer: str) -> None:
    """The layer is gone, each other one still works."""
    ending = service.run(sandbox, "sh", "-c", "id -u; exit 3")["exit"]
    assert ending["code"] == 3
    assert (ending["max_memory_bytes"] is None) is (layer == "cgroup_memory"), "what cannot be measured is not guessed"
    assert service.run(sandbox, "sh", "-c", "echo x > /usr/x")["exit"]["code"] == 2
    assert ("user" in receipt["namespaces"]) is (layer != "user_namespace")
    uid = service.run(sandbox, "id", "-u")["stdout"].strip()
    assert uid == ("1000" if layer != "user_namespace" else str(receipt["host_uid"]))
    assert (receipt["landlock"]["abi"] > 0) is (layer != "landlock")
    assert (receipt["cgroup"]["memory_bytes"] is None) is (layer == "cgroup_memory")
    assert (receipt["cgroup"]["processes"] is None) is (layer == "cgroup_pids")
    assert (receipt["cgroup"]["cpus"] is None) is (layer == "cgroup_cpu")
    assert (receipt["cgroup"]["cpuset_cpus"] is None) is (layer == "cgroup_cpuset")
    assert service.run(sandbox, "nproc")["stdout"] == "1\n", "without a control group too, if only a program wants it"
    assert (int(service.run(sandbox, "python3", "-c", FORK)["stdout"]) == 40) is (layer == "cgroup_pids")


def test_without_any_control_group_a_sandbox_still_ends_wholly(tmp_path: Path) -> None:
    given_up = ["cgroup_memory", "cgroup_pids", "cgroup_cpu", "cgroup_cpuset", "swap_limit"]
    env = {"BULKHEAD_PROCESS__ACCEPT_MISSING": json.dumps(given_up)}
    with Service(tmp_path, env, prefix("cgroups")) as service:
        sandbox = service.create()
        receipt = service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]
        assert sorted(receipt["missing_layers"]) == sorted(given_up)
        uid = receipt["host_uid"]
        running = start(service, sandbox, "sh", "-c", "setsid sleep 1000 & echo up; sleep 1000")
        running.saw(b"up")
        assert running.delete() == 204
        ending = running.exit()
        assert (ending["reason"], ending["signal"]) == ("killed", "SIGKILL")
        assert (ending["cpu_seconds"], ending["max_memory_bytes"]) == (None, None)
        timed = service.run(sandbox, "sleep", "1000", timeout_seconds=0.2)["exit"]
        assert timed["reason"] == "timeout"
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
        assert host.processes_of(uid) == []


def test_without_a_freezer_only_pause_is_missing_and_says_so(tmp_path: Path) -> None:
    with Service(tmp_path, prefix=prefix("cgroup_freezer")) as service:
        assert service.call("GET", "/readyz")[0] == 200
        sandbox = service.create()
        assert "pause" not in service.call("GET", "/runtimes")[1]["items"][0]["capabilities"]
        for change in ("pause", "resume"):
            status, problem = service.call("POST", f"/sandboxes/{sandbox}/{change}")
            assert (status, problem["type"]) == (409, "/problems/unsupported_by_runtime")
        running = start(service, sandbox, "sh", "-c", "setsid sleep 1000 & echo up; sleep 1000")
        running.saw(b"up")
        assert running.delete() == 204
        status, problem = service.call("POST", "/sandboxes", {"requires": ["pause"]})
        assert (status, problem["missing"]) == (422, ["pause"])
        assert service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]["missing_layers"] == []


def test_without_loop_devices_only_disks_are_missing_and_the_probe_says_what_helps(tmp_path: Path) -> None:
    with Service(tmp_path, prefix=prefix("loop_storage")) as service:
        assert service.call("GET", "/readyz")[0] == 200
        capabilities = service.call("GET", "/runtimes")[1]["items"][0]["capabilities"]
        assert "storage_disk" not in capabilities
        assert "storage_memory" in capabilities
        status, problem = service.call("POST", "/sandboxes", {"storage": "disk"})
        assert (status, problem["type"], problem["missing"]) == (422, "/problems/capability_missing", ["storage_disk"])
        sandbox = service.create()
        assert service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]["missing_layers"] == []
        assert service.run(sandbox, "echo", "fine")["stdout"] == "fine\n"
    layer = probed(tmp_path, *prefix("loop_storage"))
    assert (layer["available"], layer["needed"]) == (False, False)
    assert "/dev/loop-control" in layer["detail"]
    assert "modprobe loop" in layer["cure"]


def test_without_loop_devices_a_service_whose_default_are_disks_says_so_when_it_starts(tmp_path: Path) -> None:
    default = {"BULKHEAD_STORAGE": "disk"}
    with Service(tmp_path, default, prefix("loop_storage")) as service:
        host.until(lambda: any("lacks storage_disk" in line for line in service.log), "the log says it")
        status, ready = service.call("GET", "/readyz")
        assert (status, ready["type"]) == (503, "/problems/backend_unavailable")
        assert "lacks storage_disk" in ready["detail"]
        assert service.call("POST", "/sandboxes", {})[1]["missing"] == ["storage_disk"]
        assert service.run(service.create(storage="memory"), "echo", "fine")["stdout"] == "fine\n"
    layer = probed(tmp_path, *prefix("loop_storage"), settings=default)
    assert (layer["available"], layer["needed"]) == (False, True)


def probed(folder: Path, *before: str, settings: dict[str, str] | None = None) -> dict[str, Any]:
    """What `bulkhead probe` says of disks in a folder."""
    env = clean_environment() | {"BULKHEAD_PROCESS__STORAGE_DIR": str(folder / "storage")} | (settings or {})
    argv = [*before, sys.executable, "-m", "app.cli", "probe", "--json"]
    said = subprocess.run(argv, capture_output=True, cwd=PROJECT, env=env, check=False)
    return dict(next(layer for layer in json.loads(said.stdout) if layer["layer"] == "loop_storage"))


def test_loop_devices_without_nodes_make_disks_as_in_a_container(tmp_path: Path) -> None:
    require("loop", Path("/dev/loop-control").exists(), "the host has no loop devices")
    with Service(tmp_path, prefix=prefix("loop_nodes")) as service:
        sandbox = service.create(storage="disk", limits={"disk_mib": 16})
        assert service.run(sandbox, "stat", "-f", "-c", "%T", "/workspace")["stdout"] == "ext2/ext3\n"
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


def test_probe_of_a_host_with_loop_devices_makes_a_disk_and_leaves_nothing(tmp_path: Path) -> None:
    require("loop", Path("/dev/loop-control").exists(), "the host has no loop devices")
    layer = probed(tmp_path)
    assert (layer["available"], layer["cure"]) == (True, None), layer
    assert list(tmp_path.iterdir()) == []


def test_probe_says_that_mke2fs_is_missing(tmp_path: Path) -> None:
    require("loop", Path("/dev/loop-control").exists(), "the host has no loop devices")
    layer = probed(tmp_path, *prefix("mke2fs"))
    assert (layer["available"], layer["cure"]) == (False, "install e2fsprogs, which has mke2fs")


@pytest.mark.parametrize("layer", REQUIRED)
def test_a_layer_that_nobody_can_give_up_fails_the_create_with_its_step(tmp_path: Path, layer: str) -> None:
    with Service(tmp_path, prefix=prefix(layer)) as service:
        first, launcher = host.first_uid(service), service.children()["launcher"]
        for _ in range(3):
            status, problem = service.call("POST", "/sandboxes", {})
            assert (status, problem["type"]) == (500, "/problems/launch_failed"), problem
            assert problem["step"] == REQUIRED[layer]
        assert service.call("GET", "/sandboxes")[1]["items"] == []
        host.until(lambda: not host.sandbox_groups(launcher, first), "no group stays")
        assert service.stop() == 0
    with host.kept(first):
        assert host.left_of(first) == []


def test_a_layer_that_cannot_be_given_up_is_refused_by_name(tmp_path: Path) -> None:
    service = Service(tmp_path, {"BULKHEAD_PROCESS__ACCEPT_MISSING": '["seccomp"]'})
    assert service.process.wait(PATIENCE) == 2
    service.stop()
    assert "BULKHEAD_PROCESS__ACCEPT_MISSING" in "\n".join(service.log)
