"""Pause on the running kernel: what is paused uses no processor, and ends without running on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.kernel import host
from tests.kernel.talk import Running, start
from tests.kernel.test_endings import STOPPED, VFORK_STUCK
from tests.require import require
from tests.service import Service

COUNTER = "i=0; while :; do i=$((i+1)); echo $i; done"
BOMB = "import os\nprint('go', flush=True)\nwhile True:\n try: os.fork()\n except OSError: pass"
MANY = "for i in $(seq {}); do (while :; do :; done) & done; echo up; wait"


def pause(service: Service, sandbox: str) -> None:
    status, answer = service.call("POST", f"/sandboxes/{sandbox}/pause")
    assert (status, answer["state"]) == (200, "paused"), answer


def resume(service: Service, sandbox: str) -> None:
    status, answer = service.call("POST", f"/sandboxes/{sandbox}/resume")
    assert (status, answer["state"]) == (200, "running"), answer


def ticks(uid: int) -> dict[int, int]:
    """Processor time of each process but the worker, which the kernel counts exactly while it does not run."""
    found, living = {}, host.living_of(uid)
    for pid in living:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) in living:  # the worker is a child of the launcher
                found[pid] = int(fields[11]) + int(fields[12])
    return found


def counter(service: Service, sandbox: str) -> Running:
    running = start(service, sandbox, "sh", "-c", COUNTER)
    running.saw(b"100\n")
    return running


def still(running: Running) -> bytes:
    """What it had printed, once the gateway has read its pipes."""
    gateway = running.service.children()["gateway"]
    host.until(lambda: in_pipes_of(gateway) == 0, "the pipes are read")
    return running.out()


def in_pipes_of(pid: int) -> int:
    """Bytes that wait in the pipes that this process alone reads: not those for the stdin of a program."""
    ends: dict[str, list[Path]] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            ends.setdefault(str(entry.readlink()), []).append(entry)
    pipes = [found[0] for link, found in ends.items() if link.startswith("pipe:") and len(found) == 1]
    return sum(in_pipe(pipe) for pipe in pipes if is_read(pipe))


def is_read(entry: Path) -> bool:
    """The mode of an entry of /proc/PID/fd is that of its open: proc(5)."""
    try:
        return not entry.lstat().st_mode & stat.S_IWUSR
    except FileNotFoundError:
        return False


def in_pipe(entry: Path) -> int:
    try:
        pipe = os.open(entry, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
    finally:
        os.close(pipe)


def test_a_counter_stops_and_goes_on_with_the_next_number(service: Service, sandbox: str) -> None:
    running, uid = counter(service, sandbox), host.host_uid(service, sandbox)
    moving = ticks(uid)
    host.until(lambda: ticks(uid) != moving, "the control: it uses the processor while it runs")
    pause(service, sandbox)
    printed, used = still(running), ticks(uid)
    time.sleep(0.3)  # in which nothing may move
    assert (running.out(), ticks(uid)) == (printed, used)
    resume(service, sandbox)
    host.until(lambda: len(running.out()) > len(printed), "it goes on")
    assert running.delete() == 204
    lines = running.out().split(b"\n")
    assert lines[:-1] == [b"%d" % n for n in range(1, len(lines))], "no number is missing, none comes twice"


def test_a_fork_bomb_stops_and_is_ended_while_it_is_paused(service: Service, sandbox: str) -> None:
    running = start(service, sandbox, "python3", "-c", BOMB)
    running.saw(b"go")
    uid = host.host_uid(service, sandbox)
    host.until(lambda: len(ticks(uid)) > 20, "it forks")
    pause(service, sandbox)
    used = ticks(uid)
    time.sleep(0.3)  # in which nothing may move
    assert ticks(uid) == used, "neither a new process nor any time for an old one"
    assert running.delete() == 204
    assert ticks(uid) == {}
    assert running.exit_now()["reason"] == "killed"
    resume(service, sandbox)
    assert service.run(sandbox, "echo", "fine")["stdout"] == "fine\n"


def test_deletes_beside_what_stays_paused(service: Service, sandbox: str) -> None:
    kept, uid = counter(service, sandbox), host.host_uid(service, sandbox)
    # All begin before any of them is busy: a command has 5 s to begin.
    doomed = [start(service, sandbox, "sh", "-c", "read line; " + MANY.format(20), stdin="open") for _ in range(2)]
    for running in doomed:
        assert service.call("PUT", f"{running.path}/stdin?eof=true")[0] == 204
    for running in doomed:
        running.saw(b"up")
    pause(service, sandbox)
    printed = still(kept)
    assert [running.delete() for running in doomed] == [204, 204]
    assert len(ticks(uid)) == 1
    assert [running.exit_now()["reason"] for running in doomed] == ["killed", "killed"]
    assert still(kept) == printed
    resume(service, sandbox)
    host.until(lambda: len(kept.out()) > len(printed), "the other goes on")


def test_delete_of_a_paused_sandbox_leaves_nothing(service: Service) -> None:
    sandbox = service.create(limits={"processes": 128})
    start(service, sandbox, "sh", "-c", MANY.format(100)).saw(b"up")
    uid = host.host_uid(service, sandbox)
    pause(service, sandbox)
    assert len(host.living_of(uid)) > 100
    assert [folder for folder in host.groups_of(service, uid) if "freezer" in folder] or not is_first_version()
    assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
    assert host.processes_of(uid) == []
    assert host.groups_of(service, uid) == []


def is_first_version() -> bool:
    return not Path("/sys/fs/cgroup/cgroup.controllers").exists()


@pytest.mark.parametrize("script", [STOPPED, VFORK_STUCK], ids=["stopped", "vfork-stuck"])
def test_what_waits_in_the_kernel_can_be_paused_too(service: Service, sandbox: str, script: str) -> None:
    running = start(service, sandbox, "sh", "-c", "echo up; " + script)
    running.saw(b"up")
    pause(service, sandbox)
    resume(service, sandbox)
    pause(service, sandbox)
    assert running.delete() == 204
    assert running.exit_now()["reason"] == "killed"


def test_a_timeout_ends_what_is_paused(service: Service, sandbox: str) -> None:
    running = start(service, sandbox, "sh", "-c", "echo up; while :; do :; done", timeout_seconds=5)
    running.saw(b"up")
    pause(service, sandbox)
    ending = running.exit()
    assert (ending["reason"], ending["signal"]) == ("timeout", "SIGKILL")
    assert ending["duration_seconds"] >= 5
    assert service.call("GET", f"/sandboxes/{sandbox}")[1]["state"] == "paused"


def test_the_ttl_ends_a_sandbox_that_is_paused(service: Service) -> None:
    sandbox = service.create()
    running, uid = counter(service, sandbox), host.host_uid(service, sandbox)
    pause(service, sandbox)
    assert service.call("PATCH", f"/sandboxes/{sandbox}", {"ttl_seconds": 1})[0] == 200
    host.until(lambda: not host.processes_of(uid), "it ends")
    assert running.exit()["reason"] == "killed"
    assert service.call("GET", f"/sandboxes/{sandbox}")[1]["state_reason"] == "the sandbox expired: its ttl passed"


def test_stdin_signals_and_a_large_answer_after_the_resume(service: Service, sandbox: str) -> None:
    script = "trap 'echo usr1' USR1; echo up; read line; echo got $line; head -c 3000000 /dev/zero"
    running = start(service, sandbox, "bash", "-c", script, stdin="open")
    running.saw(b"up")
    pause(service, sandbox)
    assert running.signal("SIGUSR1") == 204
    with running.stream("?stdin=true") as viewer:
        viewer.send(b"word\n")
        assert still(running) == b"up\n"
        resume(service, sandbox)
        running.saw(b"got word")
    assert running.exit()["code"] == 0
    assert service.output(running.path).startswith(b"up\nusr1\ngot word\n")
    assert running.show()["output"]["stdout"]["bytes"] == len(b"up\nusr1\ngot word\n") + 3_000_000


def test_files_wait_for_the_resume(service: Service, sandbox: str) -> None:
    service.run(sandbox, "sh", "-c", "echo text > file")
    path = f"/sandboxes/{sandbox}/files?path=file"
    pause(service, sandbox)
    status, problem = service.call("GET", path)
    assert (status, problem["type"], problem["state"]) == (409, "/problems/wrong_state", "paused")
    resume(service, sandbox)
    assert service.call("GET", path) == (200, b"text\n")


def test_a_killed_worker_takes_what_is_paused_with_it(service: Service) -> None:
    sandbox = service.create()
    running, uid = counter(service, sandbox), host.host_uid(service, sandbox)
    worker = host.worker_of(service, sandbox)
    pause(service, sandbox)
    os.kill(worker, signal.SIGKILL)
    host.until(lambda: not host.processes_of(uid), "all of it ends")
    assert running.exit()["reason"] == "lost"
    shown = service.call("GET", f"/sandboxes/{sandbox}")[1]
    assert (shown["state"], shown["state_reason"]) == ("failed", "its worker ended with signal SIGKILL")
    assert service.call("POST", f"/sandboxes/{sandbox}/resume")[0] == 409


# --- the end of the service's parts


def test_a_stop_of_the_service_leaves_nothing_of_what_is_paused(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "a service that is started as root")
    with Service(tmp_path) as service:
        first, sandbox = host.first_uid(service), service.create()
        counter(service, sandbox)
        pause(service, sandbox)
        assert service.stop() == 0
    with host.kept(first):
        assert host.left_of(first) == []


def test_a_killed_launcher_is_followed_by_one_that_ends_what_was_paused(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "a service that is started as root")
    with Service(tmp_path) as service:
        first, sandbox = host.first_uid(service), service.create()
        running, uid = counter(service, sandbox), host.host_uid(service, sandbox)
        pause(service, sandbox)
        printed = still(running)
        os.kill(service.children()["launcher"], signal.SIGKILL)
        assert running.exit()["reason"] == "lost"
        assert running.out() == printed, "it ended where it was"
        host.until(lambda: not host.processes_of(uid), "its processes end")
        host.until(lambda: service.call("GET", "/readyz")[0] == 200, "the next launcher serves")
        assert service.call("GET", f"/sandboxes/{sandbox}")[1]["state"] == "failed"
        assert service.run(service.create(), "echo", "fine")["stdout"] == "fine\n"
        assert service.stop() == 0
    with host.kept(first):
        assert host.left_of(first) == []


def test_a_killed_service_runs_nothing_that_was_paused_and_the_next_start_takes_it_away(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "a service that is started as root")
    service = Service(tmp_path / "killed")
    service.wait_listening()
    first, parts = host.first_uid(service), service.children()
    sandbox = service.create()
    counter(service, sandbox)
    uid = host.host_uid(service, sandbox)
    pause(service, sandbox)
    service.process.kill()
    service.stop()
    host.until(lambda: not any(map(host.state_of, parts.values())), "both halves end")
    used = ticks(uid)
    time.sleep(0.2)  # in which nothing may move
    assert ticks(uid) == used, "whatever is there of it is frozen"
    left = set(host.processes_of(uid))
    with Service(tmp_path / "next") as fresh:
        if host.first_uid(fresh) == first:  # the lowest free range; unless somebody else was faster
            # The clone that the next service makes ahead has this uid again.
            host.until(lambda: not left & set(host.processes_of(uid)), "what was left is ended")
        assert fresh.run(fresh.create(), "echo", "fine")["stdout"] == "fine\n"
