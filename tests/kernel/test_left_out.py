"""Each step of confine.py, taken out of the list: what docs/isolation.md says about it ("Left out") is true.

A step whose absence nobody notices is a step that nobody needs, or one that no test protects. So each either makes the
create fail at a known place, or leaves a hole that is seen without it and not seen with it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.launcher.sandbox import confine
from tests.kernel.host import state_of, until, worker_of
from tests.kernel.without import prefix
from tests.require import require
from tests.service import PROJECT, Service

STEPS = [step.__name__ for step in (*confine.AHEAD, *confine.FROM_PLAN, *confine.LOCKDOWN, *confine.PROOF)]
Hole = Callable[[Service, str], bool]


@contextmanager
def service_without(step: str, folder: Path, layer: str = "") -> Iterator[Service]:
    """From a copy of the program in which the step is not in the list, on a host that lacks the layer."""
    shutil.copytree(PROJECT / "app", folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    page = folder / "app/launcher/sandbox/confine.py"
    text, count = re.subn(rf"^    (steps|lockdown)\.{step},.*\n", "", page.read_text(), flags=re.MULTILINE)
    assert count == 1
    page.write_text(text)
    env = {"BULKHEAD_PROCESS__ACCEPT_MISSING": layer} if layer else {}
    lacking = (f"PYTHONPATH={PROJECT}", *prefix(layer)) if layer else ()
    with Service(folder / "data", env, ("env", "-C", str(folder), *lacking)) as service:
        yield service


# --- steps without which nothing is served: where the create then fails

REFUSED = {
    "let_go_of_the_launcher": ("prove", "ENOTSUP"),
    "enter_own_cgroup": ("prove_groups", "ENOTSUP"),
    "mount_groups": ("prove_groups", "ENOENT"),
    "show_memory": ("prove_memory", "ENOTSUP"),
    "join_cgroup": ("prove", "ENOTSUP"),
    "mask_proc": ("prove_masks", "EACCES"),
    "enter_network_namespace": ("raise_loopback", "EPERM"),
    "show_network": ("receipt", ""),
    "await_identity": ("mount_terminals", "EPROTO"),
    "take_identity": ("mount_storage", "EOVERFLOW"),
    "mount_proc": ("prove_read_only_root", "EROFS"),
    "mount_storage": ("size_storage", "EINVAL"),
    "mount_terminals": ("await_groups", "EPROTO"),
    "await_groups": ("worker", "0"),
    "mount_disk": ("prove_storage", "EXDEV"),
    "open_network": ("prove_network", "ENETUNREACH"),
    "empty_bounding_set": ("prove", "ENOTSUP"),
    "await_plan": ("worker", "0"),
    "enter_cgroup_namespace": ("mount_groups", "EPERM"),
    "drop_all_capabilities": ("prove", "ENOTSUP"),
    "forbid_new_privileges": ("restrict_files", "EPERM"),
    "restrict_files": ("prove_landlock", "ENOTSUP"),
    "filter_system_calls": ("prove_filter", "ENOTSUP"),
    "trust_authority": ("prove_trust", "ENOTSUP"),
}
# What has to be asked for so that the step does something.
ASKED: dict[str, object] = {
    "mount_disk": {"storage": "disk"},
    "open_network": {"policy": {"network": {"mode": "proxy", "allow": ["index.example.org:443"]}}},
    "trust_authority": {
        "policy": {"network": {"mode": "proxy", "allow": [{"host": "index.example.org", "ports": [443], "http": [{}]}]}}
    },
}

# --- steps without which a sandbox is served that has a hole: how the hole is seen


def prints(*command: str) -> Callable[[Service, str], str]:
    def run(service: Service, sandbox: str) -> str:
        return str(service.run(sandbox, *command)["stdout"]).strip()

    return run


def fails(script: str) -> Hole:
    return lambda service, sandbox: service.run(sandbox, "sh", "-c", script)["exit"]["code"] != 0


def has_no_loopback(service: Service, sandbox: str) -> bool:
    links: object = service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]["network"]["links"]
    return links != [{"name": "lo", "up": True}]


def shows_the_hosts_name(service: Service, sandbox: str) -> bool:
    return prints("uname", "-n")(service, sandbox) == socket.gethostname()


def outlives_the_launcher_while_it_cannot_run(service: Service, sandbox: str) -> bool:
    worker, launcher = worker_of(service, sandbox), service.children()["launcher"]
    os.kill(worker, signal.SIGSTOP)
    until(lambda: state_of(worker) == "T", "the worker is stopped")
    os.kill(launcher, signal.SIGKILL)
    until(lambda: any("starting another" in line for line in service.log), "another launcher is started")
    alive = state_of(worker) == "T"
    if alive:
        os.kill(worker, signal.SIGKILL)
    return alive


HOLES: dict[str, Hole] = {
    "raise_loopback": has_no_loopback,
    "name_host": shows_the_hosts_name,
    "size_storage": fails("head -c 1000000 /dev/zero > /workspace/x"),
    "set_limits": lambda service, sandbox: prints("sh", "-c", "ulimit -n")(service, sandbox) != "1024",
    "die_with_the_launcher": outlives_the_launcher_while_it_cannot_run,
}

# --- steps whose absence changes nothing by itself

SECOND_WALLS = {
    "leave_keyring",  # the filter denies every call that could use the old keyring
    "keep_to_cpus",  # the cpuset controller, where the host has it, lets nobody run elsewhere
    "hide_from_commands",  # the change of uid had that effect already, unless fs.suid_dumpable is not 0
}
WARM_UP = {"begin_rules", "rehearse"}
PROOFS = {
    "prove_masks", "prove_groups", "prove_storage", "prove_memory", "prove_read_only_root", "prove_identity",
    "prove_landlock", "prove_filter", "prove_network", "prove_trust",
}  # fmt: skip


def test_every_step_has_its_place_in_one_of_the_lists() -> None:
    lists = [*REFUSED, *HOLES, *SECOND_WALLS, *PROOFS, *WARM_UP]
    assert sorted(lists) == sorted(STEPS)


@pytest.fixture
def root() -> None:
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("step", REFUSED)
def test_without_this_step_no_sandbox_is_served(step: str, tmp_path: Path) -> None:
    with service_without(step, tmp_path) as service:
        status, problem = service.call("POST", "/sandboxes", ASKED.get(step, {}))
        assert (status, problem["type"]) == (500, "/problems/launch_failed")
        assert (problem["step"], problem["errno"]) == REFUSED[step]
        assert service.call("GET", "/sandboxes")[1]["items"] == []


@pytest.mark.usefixtures("root")
def test_worker_that_may_use_other_processors_is_not_served(tmp_path: Path) -> None:
    require("processors", len(os.sched_getaffinity(0)) > 1, "with one there are no others")
    with service_without("keep_to_cpus", tmp_path, "cgroup_cpuset") as service:
        status, problem = service.call("POST", "/sandboxes", {})
        assert (status, problem["step"], problem["errno"]) == (500, "prove", "ENOTSUP")
        assert "it may use other processors than its own" in problem["detail"]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("step", HOLES)
def test_without_this_step_there_is_a_hole_that_it_closes(step: str, tmp_path: Path) -> None:
    with service_without(step, tmp_path) as service:
        assert HOLES[step](service, service.create()), "nothing is lost without the step: is it of any use?"
    with Service(tmp_path / "data") as service:
        assert not HOLES[step](service, service.create())


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("step", sorted(SECOND_WALLS | PROOFS | WARM_UP))
def test_without_this_step_the_others_still_hold(step: str, tmp_path: Path) -> None:
    with service_without(step, tmp_path) as service:
        sandbox = service.create()
        for script in ("cat /proc/1/environ", "ls /proc/1/fd", "touch /usr/x", "cat /etc/shadow", "unshare -U true"):
            assert service.run(sandbox, "sh", "-c", script)["exit"]["code"] != 0, script
