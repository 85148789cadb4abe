"""Endings are true: each way in which a command can end is provoked, and told as what it was."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import pytest

from app.core.commands import NUMBERS
from tests.kernel import host
from tests.kernel.talk import start
from tests.service import PATIENCE, Service

SMALL = {"memory_mib": 64, "disk_mib": 16}
EAT = "b = []\nwhile True: b.append(bytearray(1 << 20))"
# Whose default is to end the process, signal(7).
DEADLY = [
    "HUP",
    "INT",
    "QUIT",
    "ILL",
    "TRAP",
    "ABRT",
    "BUS",
    "FPE",
    "KILL",
    "USR1",
    "SEGV",
    "USR2",
    "PIPE",
    "ALRM",
    "TERM",
    "STKFLT",
    "XCPU",
    "XFSZ",
    "VTALRM",
    "PROF",
    "IO",
    "PWR",
    "SYS",
]
GROUP = """
import os, signal, sys, time
child = os.fork()
name = "child" if child == 0 else "leader"
def told(number, frame):
    os.write(1, f"{name} got {signal.Signals(number).name}\\n".encode())
    if child:
        os.waitpid(child, 0)
    sys.exit(0)
for number in (1, 2, 3, 6, 10, 12, 15, 28):
    signal.signal(number, told)
os.write(1, f"{name} ready\\n".encode())
while True:  # not by pause(), which would miss a signal that comes just before it
    time.sleep(0.01)
"""


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 137, 255])
def test_an_exit_code_is_the_programs_own(service: Service, sandbox: str, code: int) -> None:
    ending = service.run(sandbox, "sh", "-c", f"exit {code}")["exit"]
    assert (ending["reason"], ending["code"], ending["signal"], ending["detail"]) == ("exited", code, None, None)


def test_every_deadly_signal_is_named(service: Service, sandbox: str) -> None:
    for name in DEADLY:
        ending = service.run(sandbox, "sh", "-c", f"kill -{NUMBERS[f'SIG{name}']} $$")["exit"]
        assert (ending["reason"], ending["code"], ending["signal"]) == ("signaled", None, f"SIG{name}")


def test_a_real_time_signal_is_named(service: Service, sandbox: str) -> None:
    ending = service.run(sandbox, "sh", "-c", "kill -37 $$")["exit"]
    assert (ending["reason"], ending["signal"]) == ("signaled", "SIGRTMIN+3")


@pytest.mark.parametrize(
    "name", ["SIGHUP", "SIGINT", "SIGQUIT", "SIGABRT", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGWINCH"]
)
def test_a_signal_reaches_the_whole_process_group(service: Service, sandbox: str, name: str) -> None:
    running = start(service, sandbox, "python3", "-c", GROUP)
    running.saw(b"leader ready")
    running.saw(b"child ready")
    assert running.signal(name) == 204
    assert running.exit()["code"] == 0
    assert set(running.out().splitlines()) == {
        b"leader ready", b"child ready", f"leader got {name}".encode(), f"child got {name}".encode()
    }  # fmt: skip


def test_a_signal_from_the_client_is_told_as_signaled(service: Service, sandbox: str) -> None:
    for name in ("SIGTERM", "SIGKILL", "SIGINT"):
        running = start(service, sandbox, "sleep", "1000")
        assert running.signal(name) == 204
        ending = running.exit()
        assert (ending["reason"], ending["signal"]) == ("signaled", name)
        assert running.signal(name) == 409


TERM_IGNORED = "trap '' TERM INT HUP QUIT; while :; do sleep 1000; done"
STOPPED = "kill -STOP $$"
# The parent of a vfork waits in the kernel until the child has called exec; this child waits for a writer before.
VFORK_STUCK = (
    "mkfifo fifo; exec python3 -c 'import os; "
    'os.posix_spawn("/usr/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "fifo", os.O_RDONLY, 0)])\''
)


@pytest.mark.parametrize("script", [TERM_IGNORED, STOPPED, VFORK_STUCK], ids=["term-ignored", "stopped", "vfork-stuck"])
def test_a_timeout_ends_what_does_not_want_to_end(service: Service, sandbox: str, script: str) -> None:
    ending = service.run(sandbox, "sh", "-c", script, timeout_seconds=2)["exit"]
    assert (ending["reason"], ending["code"], ending["signal"]) == ("timeout", None, "SIGKILL")
    assert ending["detail"] == "still running after 2 s"
    assert ending["duration_seconds"] >= 2


def ending_before_its_timeout(service: Service, sandbox: str, script: str, *arguments: str) -> dict[str, Any]:
    """Of a program that ends at once. A child that goes on printing keeps the log open for a second after that, in
    which the time runs out. A busy machine may need more time for the program, so this tries again with more."""
    noisy = f"(while :; do echo x; sleep 0.01; done) & {script}"
    for seconds in (*[0.9] * 5, 2, 4, 8, 16):
        ending: dict[str, Any] = service.run(sandbox, "sh", "-c", noisy, *arguments, timeout_seconds=seconds)["exit"]
        if ending["reason"] != "timeout":
            assert ending["duration_seconds"] < seconds
            return ending
    raise AssertionError(ending)


def test_a_program_that_exited_before_the_timeout_exited(service: Service, sandbox: str) -> None:
    ending = ending_before_its_timeout(service, sandbox, "exit 3")
    assert (ending["reason"], ending["code"]) == ("exited", 3)


def test_a_program_that_killed_itself_before_the_timeout_was_signaled(service: Service, sandbox: str) -> None:
    ending = ending_before_its_timeout(service, sandbox, "kill -KILL $$")
    assert (ending["reason"], ending["signal"], ending["detail"]) == ("signaled", "SIGKILL", None)


def test_oom_is_told_when_the_first_process_was_killed(service: Service) -> None:
    sandbox = service.create(limits=SMALL)
    neighbour = start(service, sandbox, "sleep", "1000")
    ending = service.run(sandbox, "python3", "-c", EAT)["exit"]
    assert (ending["reason"], ending["code"], ending["signal"]) == ("oom", None, "SIGKILL")
    assert "killed 1 of its processes at the memory limit" in ending["detail"]
    assert 60 << 20 < ending["max_memory_bytes"] <= 64 << 20
    assert neighbour.show()["state"] == "running"
    assert neighbour.signal("SIGTERM") == 204
    assert neighbour.exit()["reason"] == "signaled"
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_an_oom_before_the_timeout_stays_an_oom(service: Service) -> None:
    sandbox = service.create(limits=SMALL)
    ending = ending_before_its_timeout(service, sandbox, 'exec python3 -c "$0"', EAT)
    assert (ending["reason"], ending["signal"]) == ("oom", "SIGKILL")
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_oom_is_told_when_a_child_was_killed_and_the_program_failed(service: Service) -> None:
    sandbox = service.create(limits=SMALL)
    ending = service.run(sandbox, "sh", "-c", 'python3 -c "$0"; exit 7', EAT)["exit"]
    assert (ending["reason"], ending["code"], ending["signal"]) == ("oom", None, "SIGKILL")
    assert "exit code 7" in ending["detail"]
    recovered = service.run(sandbox, "sh", "-c", 'python3 -c "$0"; exit 0', EAT)["exit"]
    assert (recovered["reason"], recovered["code"]) == ("exited", 0)
    service.call("DELETE", f"/sandboxes/{sandbox}")


# The parent stays small, so that the kernel never chooses it.
OOM_LOOP = """
import os, sys
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        b = bytearray(1 << 30)
    os.wait()
"""


def kills_told(log: int, uid: int) -> int:
    """How many kills for memory of processes of this host uid the kernel has told since this was last asked."""
    told = 0
    with contextlib.suppress(BlockingIOError):
        while record := os.read(log, 8192):
            told += b"out of memory: Killed process" in record and f"UID:{uid} ".encode() in record
    return told


def test_a_loop_of_oom_kills_is_ended_before_it_fills_the_kernels_log(service: Service) -> None:
    sandbox = service.create(limits=SMALL)
    uid = host.host_uid(service, sandbox)
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.lseek(log, 0, os.SEEK_END)  # what an earlier service has caused stays there, and its uid was the same
        survived = service.run(sandbox, "python3", "-c", OOM_LOOP, "8")["exit"]
        assert (survived["reason"], survived["code"]) == ("exited", 0)
        assert kills_told(log, uid) == 8, "each kill is told there"
        neighbour = start(service, sandbox, "sleep", "1000")
        ending = service.run(sandbox, "python3", "-c", OOM_LOOP, "1000")["exit"]
        assert (ending["reason"], ending["code"], ending["signal"]) == ("oom", None, "SIGKILL")
        assert ending["detail"].endswith("of its processes at the memory limit; after 10 it is ended")
        assert 10 <= kills_told(log, uid) < 20
    finally:
        os.close(log)
    assert neighbour.show()["state"] == "running"
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_a_timeout_after_an_oom_that_was_survived_is_a_timeout(service: Service) -> None:
    sandbox = service.create(limits=SMALL)
    script = 'python3 -c "$0"; echo survived; sleep 1000'
    for seconds in (3, 10, 30):  # the last one for a busy machine
        done = service.run(sandbox, "sh", "-c", script, EAT, timeout_seconds=seconds)
        assert (done["exit"]["reason"], done["exit"]["signal"]) == ("timeout", "SIGKILL")
        if done["stdout"] == "survived\n":
            break
    assert done["stdout"] == "survived\n"
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_killed_says_what_was_deleted(service: Service) -> None:
    sandbox = service.create()
    first, second = (start(service, sandbox, "sleep", "1000") for _ in range(2))
    assert first.delete() == 204
    assert first.delete() == 204
    ending = first.exit_now()
    assert (ending["reason"], ending["signal"], ending["detail"]) == ("killed", "SIGKILL", "the execution was deleted")
    assert second.show()["state"] == "running"
    assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
    ending = second.exit_now()
    assert (ending["reason"], ending["signal"], ending["detail"]) == ("killed", "SIGKILL", "the sandbox was deleted")


def test_killed_by_expiry_says_so(service: Service) -> None:
    sandbox = service.create()
    running = start(service, sandbox, "sleep", "1000")
    assert service.call("PATCH", f"/sandboxes/{sandbox}", {"ttl_seconds": 1})[0] == 200
    ending = running.exit()
    assert (ending["reason"], ending["signal"]) == ("killed", "SIGKILL")
    assert ending["detail"] == "the sandbox expired: its ttl passed"


def test_the_output_limit_kills_and_keeps_the_first_bytes(service: Service) -> None:
    sandbox = service.create(limits={"output_bytes": 100_000})
    done = service.run(sandbox, "sh", "-c", "seq 1 1000000; sleep 1000", on_output_limit="kill")
    assert (done["exit"]["reason"], done["exit"]["signal"]) == ("output_limit", "SIGKILL")
    assert done["exit"]["detail"] == "stdout passed 100000 bytes"
    expected = "".join(f"{number}\n" for number in range(1, 20_000))
    assert done["stdout"] == expected[:100_000]
    assert done["output"]["stdout"] == {"bytes": 100_000, "dropped_bytes": 0}
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_usage_is_measured(service: Service, sandbox: str) -> None:
    burn = "import time\nx = bytearray(50 << 20)\nwhile time.process_time() < 0.5: pass"
    ending = service.run(sandbox, "python3", "-c", burn)["exit"]
    assert 0.45 < ending["cpu_seconds"] < 1.5
    assert 50 << 20 < ending["max_memory_bytes"] < 100 << 20
    assert 0.45 < ending["duration_seconds"] < PATIENCE
    idle = service.run(sandbox, "sleep", "0.3")["exit"]
    assert 0 < idle["cpu_seconds"] < 0.2
    assert 0.3 <= idle["duration_seconds"] < PATIENCE


def test_a_killed_worker_loses_its_executions_and_nobody_elses(service: Service) -> None:
    sandbox, neighbour = service.create(), service.create()
    running, other = start(service, sandbox, "sleep", "1000"), start(service, neighbour, "sleep", "1000")
    uid, worker = host.host_uid(service, sandbox), host.worker_of(service, sandbox)
    os.kill(worker, signal.SIGKILL)
    ending = running.exit()
    assert (ending["reason"], ending["code"], ending["signal"]) == ("lost", None, None)
    shown = service.call("GET", f"/sandboxes/{sandbox}")[1]
    assert (shown["state"], shown["state_reason"]) == ("failed", "its worker ended with signal SIGKILL")
    assert host.processes_of(uid) == []
    assert other.show()["state"] == "running"
    assert service.call("POST", f"/sandboxes/{sandbox}/executions", {"command": ["true"]})[0] == 409
    for name in (sandbox, neighbour):
        assert service.call("DELETE", f"/sandboxes/{name}")[0] == 204
