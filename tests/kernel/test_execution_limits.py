"""Limits of one execution: lower than the sandbox's, for it alone, and kept by the kernel or by the launcher."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from app.core.execution_limits import OPEN_FILES
from app.launcher.protocol import EXECUTE, ExecutionPlan, Writer, pack_command
from app.launcher.sandbox.lockdown import NOFILE_HARD
from tests.kernel import host
from tests.kernel.direct import Gateway, Gone, Refused
from tests.kernel.talk import start
from tests.service import Service

MIB = 1 << 20
RLIMITS = "import resource as r; print([r.getrlimit(k) for k in (r.RLIMIT_FSIZE, r.RLIMIT_STACK, r.RLIMIT_NOFILE)])"
BURN = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"


@pytest.fixture(scope="module")
def sandbox(service: Service) -> Any:
    made = service.create(limits={"memory_mib": 256, "disk_mib": 64, "cpus": 2})
    yield made
    service.call("DELETE", f"/sandboxes/{made}")


def run(service: Service, sandbox: str, *command: str, **limits: float) -> dict[str, Any]:
    status, said = service.call("POST", f"/sandboxes/{sandbox}/run", {"command": list(command), "limits": limits})
    assert status == 200, said
    return dict(said)


def processes_of(service: Service, sandbox: str) -> int:
    return int(service.call("GET", f"/sandboxes/{sandbox}/usage")[1]["processes"])


def test_processor_time_of_all_its_processes_has_a_limit(service: Service, sandbox: str) -> None:
    # Its start alone took half a second in a busy emulated machine.
    sleeping = start(service, sandbox, "sleep", "600", limits={"cpu_seconds": 2})
    said = run(service, sandbox, "python3", "-c", BURN, cpu_seconds=2.5)
    exit_ = said["exit"]
    assert (exit_["reason"], exit_["code"], exit_["signal"]) == ("cpu_limit", None, "SIGKILL")
    assert "its limit is 2.5 s" in exit_["detail"]
    assert exit_["cpu_seconds"] >= 2.5
    # What was killed counts until the worker has reaped it, and that rests between two looks.
    host.until(lambda: processes_of(service, sandbox) == 1, "the sleeping one, which has used nothing, is left")
    assert sleeping.show()["state"] == "running"
    sleeping.delete()


def test_processor_time_beyond_the_limit_is_little(service: Service, sandbox: str) -> None:
    most = 0.5 + 0.25 * (os.cpu_count() or 1) + 1  # the launcher may be late on a busy machine, but not each time
    used = (run(service, sandbox, "python3", "-c", BURN, cpu_seconds=0.5)["exit"]["cpu_seconds"] for _ in range(5))
    assert any(seconds < most for seconds in used)


def test_limits_of_a_process_are_its_own_and_not_the_next_ones(service: Service, sandbox: str) -> None:
    before = run(service, sandbox, "python3", "-c", RLIMITS)["stdout"]
    limited = run(service, sandbox, "python3", "-c", RLIMITS, file_mib=3, stack_mib=5, open_files=64)["stdout"]
    assert limited == f"[({3 * MIB}, {3 * MIB}), ({5 * MIB}, {5 * MIB}), (64, 64)]\n"
    assert run(service, sandbox, "python3", "-c", RLIMITS)["stdout"] == before != limited
    one = service.call(
        "POST", "/run", {"command": ["python3", "-c", RLIMITS], "limits": {"file_mib": 3, "memory_mib": 64}}
    )[1]
    assert one["stdout"].startswith(f"[({3 * MIB}, {3 * MIB})")


def test_what_is_beyond_them_fails_as_the_kernel_says(service: Service, sandbox: str) -> None:
    grow = "import os; f = os.open('big', os.O_CREAT | os.O_WRONLY); [os.write(f, bytes(1 << 20)) for _ in range(4)]"
    assert run(service, sandbox, "python3", "-c", grow)["exit"]["code"] == 0
    signaled = run(service, sandbox, "sh", "-c", "exec dd if=/dev/zero of=big bs=1M count=4", file_mib=2)["exit"]
    assert (signaled["reason"], signaled["signal"]) == ("signaled", "SIGXFSZ")
    count = "import os\nn = 0\ntry:\n  while True: os.open('.', 0); n += 1\nexcept OSError as e: print(n, e.errno)"
    assert run(service, sandbox, "python3", "-c", count, open_files=32)["stdout"] == f"29 {errno.EMFILE}\n"


def test_start_by_fork_is_as_the_other_one(service: Service, sandbox: str) -> None:
    """Groups, signals, open descriptors, the working directory, and how a start fails."""
    look = (
        "import os, signal as s; print(os.getpid() == os.getsid(0) == os.getpgid(0), os.getcwd()"
        ", os.listdir('/proc/self/fd'), [n for n in range(1, 32) if s.getsignal(n) is s.SIG_IGN]"
        ", s.pthread_sigmask(s.SIG_BLOCK, []))"
    )
    spawned, forked = (
        run(service, sandbox, "python3", "-I", "-c", look, **limits) for limits in ({}, {"open_files": 100})
    )
    assert spawned["stdout"] == forked["stdout"] != ""
    for command in (["no-such-program"], ["/etc/passwd"], ["/workspace"]):
        spawned, forked = (run(service, sandbox, *command, **limits) for limits in ({}, {"open_files": 100}))
        assert spawned["exit"]["reason"] == "start_failed"
        assert spawned["exit"]["detail"] == forked["exit"]["detail"]
    missing = run(service, sandbox, "true", open_files=100)
    assert missing["exit"]["code"] == 0
    host.until(lambda: processes_of(service, sandbox) == 0, "nothing is left")


def test_limited_command_may_have_a_terminal(service: Service, sandbox: str) -> None:
    look = "import os; print(os.ttyname(0), os.tcgetpgrp(0) == os.getpid(), os.open('/dev/tty', os.O_RDWR) > 2)"
    spawned, forked = (
        service.call("POST", f"/sandboxes/{sandbox}/run", {"command": ["python3", "-c", look], "tty": True, **more})[1]
        for more in ({}, {"limits": {"open_files": 100}})
    )
    assert spawned["exit"]["code"] == 0, spawned
    assert forked["stdout"] == spawned["stdout"]


def test_memory_has_a_limit_of_its_own_and_the_neighbours_live(service: Service, sandbox: str) -> None:
    neighbour = start(service, sandbox, "sleep", "600")
    take = "x = bytearray(100 << 20); print(len(x))"
    assert run(service, sandbox, "python3", "-c", take)["exit"]["code"] == 0
    exit_ = run(service, sandbox, "python3", "-c", take, memory_mib=32)["exit"]
    assert (exit_["reason"], exit_["signal"]) == ("oom", "SIGKILL")
    assert exit_["max_memory_bytes"] <= 32 * MIB
    again = "import subprocess, sys\nwhile True: subprocess.run([sys.executable, '-c', 'x = bytearray(100 << 20)'])"
    exit_ = run(service, sandbox, "python3", "-c", again, memory_mib=32)["exit"]
    assert exit_["reason"] == "oom"
    assert "after 10 it is ended" in exit_["detail"]
    assert neighbour.show()["state"] == "running"
    neighbour.delete()


@pytest.mark.parametrize(
    ("limits", "ceiling"),
    [
        ({"cpu_seconds": 1e9}, 2 * 3600),
        ({"stack_mib": 257}, 256),
        ({"open_files": 4097}, 4096),
        ({"file_mib": 65}, 64),
        ({"memory_mib": 257}, 256),
    ],
)
def test_limit_above_the_sandboxs_is_refused(
    service: Service, sandbox: str, limits: dict[str, float], ceiling: int
) -> None:
    (name,) = limits
    for path in ("run", "executions"):
        status, problem = service.call("POST", f"/sandboxes/{sandbox}/{path}", {"command": ["true"], "limits": limits})
        assert (status, problem["type"], problem["pointer"]) == (422, "/problems/limit_too_high", f"/limits/{name}")
        assert problem["ceiling"] == ceiling


@pytest.mark.parametrize("name", ["cpu_seconds", "stack_mib", "open_files", "file_mib", "memory_mib"])
@pytest.mark.parametrize("value", [0, -1, "1", 1e400])
def test_limit_that_is_none_is_refused(service: Service, sandbox: str, name: str, value: object) -> None:
    body = {"command": ["true"], "limits": {name: value if value != 1e400 else 10**400}}
    status, problem = service.call("POST", f"/sandboxes/{sandbox}/executions", body)
    assert (status, problem["type"]) == (422, "/problems/invalid_request")


def test_launcher_refuses_limits_above_the_plan_whoever_sends_them(hostile: Gateway) -> None:
    assert OPEN_FILES == NOFILE_HARD
    most = 2**64 - 1
    with hostile.create() as owner, Path(os.devnull).open("r+b") as null:

        def execute(plan: ExecutionPlan) -> None:
            header = plan.write(Writer(0).text("one").u32(1).u8(0)).data[1:]
            body = pack_command([b"true"], [b"PATH=/usr/bin"], b"/workspace")
            hostile.ask(EXECUTE, bytes(header) + body, [null.fileno()] * 3)

        for plan in (
            ExecutionPlan(cpu_ns=most),
            ExecutionPlan(memory_bytes=most),
            ExecutionPlan(stack_bytes=most),
            ExecutionPlan(file_bytes=most),
            ExecutionPlan(open_files=NOFILE_HARD + 1),
        ):
            with pytest.raises(Refused) as error:
                execute(plan)
            assert (error.value.step, error.value.errno) == ("plan", errno.ERANGE)
        assert hostile.run(owner, 1, "echo", "here") == (b"here\n", 0)
        wrong = bytes(Writer(0).text("one").u32(2).u8(0).u8(2).data[1:])
        hostile.post(EXECUTE, wrong, [null.fileno()] * 3)
        with pytest.raises(Gone):
            hostile.receive()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= NOFILE_HARD
