"""What the kernel counts for each user is counted for each sandbox: at its limits it takes nothing from others.

The counters are those of /proc/sys/user and the limits that getrlimit(2) counts by user.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from errno import EACCES, EAGAIN, EMFILE, ENOMEM, ENOSPC, EPERM
from pathlib import Path
from typing import Any

import pytest

from app.launcher.daemon.probe import CAPABILITIES
from tests.kernel import host
from tests.kernel.counters import TAKE
from tests.kernel.direct import Gateway, launcher, plan
from tests.kernel.talk import start
from tests.require import require
from tests.service import PATIENCE, PROJECT, Service

SCRIPT = Path(__file__).with_name("counters.py").read_text()
SYSCTLS = Path("/proc/sys/user")
DUMPABLE = Path("/proc/sys/fs/suid_dumpable")
INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
# What a sandbox can have of each: (how many, the errno of one more). Timers and queued signals share one number.
TAKEN = {
    "timers": (4096, EAGAIN),
    "queued_signals": (0, EAGAIN),
    "locked_segments": (16, ENOMEM),
    "message_queues": (0, EACCES),  # Landlock: their file system is not below any path of the policy
    **{name: (0, EPERM) for name in TAKE if name.endswith("_namespaces") or name.startswith("fanotify")},
}
KEPT_APART_LATE = {"locked_segments"}  # the kernel compares pages with bytes where it adds up for the owner


@pytest.fixture(scope="module", autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "the launcher needs root")


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, Any]]:
    require("sysctl", not os.statvfs(SYSCTLS).f_flag & os.ST_RDONLY, "/proc/sys is read-only here")
    found = {}
    for owner in ("root", "user"):
        argv = [sys.executable, "-m", "tests.kernel.counted", owner]
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE, check=True)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        found[owner] = {row.pop("counter"): row for row in rows}
    return found


def test_every_counter_of_this_kernel_is_tried() -> None:
    assert {path.name.removeprefix("max_") for path in SYSCTLS.iterdir()} <= set(TAKE)


@pytest.mark.parametrize("counter", TAKE)
def test_counter_used_up_in_one_sandbox_is_free_for_the_host_and_the_next(
    counted: dict[str, dict[str, Any]], counter: str
) -> None:
    """Control: with user namespaces that belong to root, the first sandbox takes it from both."""
    control, mine = counted["root"][counter], counted["user"][counter]
    assert control["count"] > 1
    assert control["root"] == control["errno"] != 0
    assert control["neighbour"] == (0 if counter in KEPT_APART_LATE else control["errno"])
    assert mine["count"] >= control["count"]
    assert (mine["errno"], mine["root"], mine["neighbour"]) == (control["errno"], 0, 0)


def in_sandbox(service: Service, sandbox: str, *wanted: str) -> dict[str, tuple[int, int]]:
    """Starts a program that keeps what it got; what it printed."""
    running = start(service, sandbox, "python3", "-c", SCRIPT, *wanted, stdin="open")
    return parse(running.saw(b"full\n").decode())


def parse(text: str) -> dict[str, tuple[int, int]]:
    lines = [line.split() for line in text.splitlines()[:-1]]
    return {name: (int(count), int(number)) for name, count, number in lines}


def test_sandbox_at_all_of_its_limits_leaves_root_and_a_neighbour_theirs(service: Service) -> None:
    greedy, neighbour = service.create(), service.create()
    wanted = [word for name in (*TAKEN, "inotify_instances") for word in (name, "5000")]
    found = in_sandbox(service, greedy, *wanted)
    for name, expected in TAKEN.items():
        assert found[name] == expected, name
    count, number = found["inotify_instances"]
    assert number == EMFILE
    assert count == int(INSTANCES.read_text()) or count > 900  # there the descriptors run out first
    one_more = [word for name in TAKE for word in (name, "1")]
    argv = [sys.executable, "-c", SCRIPT, *one_more]
    outside = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert set(parse(outside.stdout).values()) == {(1, 0)}
    beside = in_sandbox(service, neighbour, *one_more)
    refused = {name for name, got in beside.items() if got != (1, 0)}
    assert refused == {name for name, (_, number) in TAKEN.items() if number in (EPERM, EACCES)}
    for sandbox in (greedy, neighbour):
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


def test_uid_that_is_used_again_has_its_counts_back() -> None:
    wanted = ["timers", "5000", "inotify_instances", "1000"]
    said = []
    with launcher(uid_count=1) as (config, _), Gateway(config.socket) as gateway:
        for _ in range(3):
            with gateway.create(plan(memory_bytes=256 << 20)) as owner:
                said.append(gateway.run(owner, 1, "python3", "-c", SCRIPT, *wanted)[0])
                gateway.destroy()
    assert said[0].startswith(b"timers 4096 ")
    assert said == [said[0]] * 3


# --- the launcher while and after it is a sandbox's user


def test_launcher_is_root_with_all_that_it_had_after_a_create(service: Service, sandbox: str) -> None:
    """It may be making the next clone just now, and is root again in a moment."""
    pid = service.children()["launcher"]
    own = Path("/proc/self/status").read_text().partition("\nCapEff:")[2].split()[0]
    assert service.run(sandbox, "true")["exit"]["code"] == 0
    host.until(lambda: privileges(pid) == (["0"] * 4, [own], [own]), "it is root with every capability")


def privileges(pid: int) -> tuple[list[str], list[str], list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return status["Uid"], status["CapEff"], status["CapPrm"]


def test_launcher_and_all_sandboxes_end_with_a_supervisor_that_is_killed_after_a_create(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        first, parts = host.first_uid(service), service.children()
        worker = host.worker_of(service, service.create())
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait(PATIENCE)
        ended = (*parts.values(), worker)
        host.until(lambda: not any(map(host.state_of, ended)), "launcher, gateway and worker end")
        with host.kept(first):
            host.until(lambda: not host.processes_in(first), "the clone that was made ahead ends")


CLONE_FAILS = """
import errno, os
from app.launcher.daemon import cloning

def fail(flags):
    EVENT
    raise OSError(errno.ENOSPC, "no more")

if os.fork():
    os._exit(os.wait()[1] != 0)
cloning.prctl(cloning.PR_SET_PDEATHSIG, 15)
cloning.clone3 = fail
try:
    cloning.clone_owned_by(1895000001, 0)
except OSError as error:
    print(error.errno, cloning.parent_death_signal(), os.getresuid(), flush=True)
"""


def clone_fails(event: str) -> str:
    """What a process says of itself after a clone that failed, with SIGTERM as its parent-death signal."""
    code = CLONE_FAILS.replace("EVENT", event)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True, timeout=PATIENCE
    )
    return done.stdout


def test_clone_that_fails_leaves_identity_and_parent_death_signal_as_they_were() -> None:
    assert clone_fails("pass") == f"{ENOSPC} 15 (0, 0, 0)\n"


def test_parent_that_ends_while_its_signal_is_cleared_is_noticed() -> None:
    parent_ends = "old = os.getppid(); os.kill(old, 9)\n    while os.getppid() == old: pass"
    assert clone_fails(parent_ends) == ""


def test_process_that_cannot_become_root_again_ends() -> None:
    assert clone_fails("cloning.set_effective_uid = fail") == ""


WHOLE_LIFE = """
from tests.kernel.direct import Gateway, launcher
with launcher(gateway_uid=0, gateway_gid=0) as (config, _), Gateway(config.socket) as gateway:
    with gateway.create() as owner:
        said = gateway.run(owner, 1, "echo", "fine")
        gateway.destroy()
    print(said)
"""


def life_with(capabilities: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """A launcher with these Linux capabilities and no others makes a sandbox, runs a command in it and destroys it."""
    allowed = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    argv = ["setpriv", "--bounding-set", allowed, sys.executable, "-c", WHOLE_LIFE]
    return subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.usefixtures("launched")  # its groups: on version 1 only CAP_DAC_OVERRIDE makes the first of them
@pytest.mark.parametrize("dumpable", ["0", "1"])
def test_capabilities_of_the_deployed_launcher_are_enough_whatever_programs_may_be_dumped(dumpable: str) -> None:
    before = DUMPABLE.read_text()
    try:
        DUMPABLE.write_text(dumpable)
    except OSError:
        require("sysctl", before.strip() == dumpable, "/proc/sys is read-only here")
    try:
        done = life_with(CAPABILITIES)
        assert (done.stdout, done.returncode) == ("(b'fine\\n', 0)\n", 0), done.stderr
    finally:
        if before.strip() != dumpable:
            DUMPABLE.write_text(before)


@pytest.mark.parametrize("missing", CAPABILITIES)
def test_launcher_without_one_of_its_capabilities_refuses_to_start_and_names_it(missing: str) -> None:
    """CAP_KILL was missing once, and each launcher ended with the first sandbox that was deleted."""
    done = life_with(set(CAPABILITIES) - {missing})
    assert f"bulkhead: the launcher needs CAP_{missing} and does not have it\n" in done.stderr
    assert done.stdout == ""
