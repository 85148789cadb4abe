"""Terminals of the runtime `process`: what a program and a person see of them, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.backends.process.backend import ProcessBackend
from app.core.backend import Logs
from app.core.limits import Limits
from app.core.models import Command, ExitReason, SandboxSpec, Stdin, Terminal
from app.core.output import OutputLog
from app.core.policy import Policy
from tests.kernel import host
from tests.kernel.direct import Launched
from tests.kernel.talk import Running, start
from tests.service import Service

ROUNDS = 1000
LIBCS_OWN = 3 << 31  # 32 and 33, with which glibc cancels threads; its posix_spawn(3) leaves them ignored
TYPES = "?stdin=true"


@pytest.fixture(scope="module")
def shared(service: Service) -> Iterator[str]:
    sandbox = service.create()
    yield sandbox
    service.call("DELETE", f"/sandboxes/{sandbox}")


def begin(service: Service, sandbox: str, script: str, **body: Any) -> Running:
    return start(service, sandbox, "sh", "-c", script, **{"tty": True, **body})


def printed(service: Service, sandbox: str, script: str, **body: Any) -> bytes:
    running = begin(service, sandbox, script, **body)
    running.exit()
    return running.out()


def put(service: Service, path: str, data: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(service.url + path, data, method="PUT")) as answer:
        assert answer.status in (201, 204)


# --- what comes out


def test_last_words_are_never_lost_at_the_end(launched: Launched) -> None:
    """The end of a terminal is an error, EIO, not an empty read. Sizes around the kernel's buffers of 4 and 13 KiB."""
    sizes = [1 + number * 61 % 16_000 for number in range(ROUNDS)]

    async def one(sandbox: Any, number: int, size: int) -> int:
        logs = Logs(OutputLog(1 << 20), OutputLog(1 << 20))
        command = Command(("head", "-c", str(size), "/dev/zero"), stdin=Stdin.OPEN, tty=Terminal(24, 80))
        ended = await (await sandbox.execute(f"exe_{number}", command, logs)).wait()
        assert (ended.reason, ended.code) == (ExitReason.EXITED, 0)
        return logs.stdout.total

    async def rounds() -> list[int]:
        backend = ProcessBackend(Path(launched[0].socket))
        backend.open()
        sandbox = await backend.create("sbx_eio", SandboxSpec("process", Limits(), Policy()))
        try:
            found: list[int] = []
            for begin in range(0, ROUNDS, 8):
                both = enumerate(sizes[begin : begin + 8], begin)
                found += await asyncio.gather(*(one(sandbox, number, size) for number, size in both))
            return found
        finally:
            await backend.aclose()

    assert asyncio.run(rounds()) == sizes


def test_terminals_pipes_and_files_are_begun_at_one_time(launched: Launched) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"x"

    async def one(sandbox: Any, number: int) -> int | None:
        if number % 4 == 3:
            await sandbox.files.write(b"%d" % number, content())
            return 0
        command = Command(("true",), tty=Terminal(24, 80) if number % 2 == 0 else None)
        logs = Logs(OutputLog(1024), OutputLog(1024))
        code: int | None = (await (await sandbox.execute(f"exe_{number}", command, logs)).wait()).code
        return code

    async def rounds() -> list[int | None]:
        backend = ProcessBackend(Path(launched[0].socket))
        backend.open()
        sandbox = await backend.create("sbx_order", SandboxSpec("process", Limits(), Policy()))
        try:
            found: list[int | None] = []
            for begin in range(0, 40, 8):
                found += await asyncio.gather(*(one(sandbox, number) for number in range(begin, begin + 8)))
            return found
        finally:
            await backend.aclose()

    assert asyncio.run(rounds()) == [0] * 40


def test_every_byte_passes_as_it_is(service: Service, shared: str) -> None:
    data = bytes(range(256)) * 40 + b"\x1b[31m\x1b]0;title\x07" * 100 + "äöü€😀".encode() * 1000
    put(service, f"/sandboxes/{shared}/files?path=bytes", data)
    assert printed(service, shared, "stty -opost; cat bytes") == data


def test_it_is_drained_while_nobody_watches(service: Service, shared: str) -> None:
    running = begin(service, shared, "yes 0123456 | head -c 8000000; printf end")
    assert running.exit()["code"] == 0
    assert running.show()["output"]["stdout"]["bytes"] == 9_000_000 + len("end")


def test_terminal_that_is_closed_and_opened_again_has_not_ended(service: Service, shared: str) -> None:
    script = "exec >&- 2>&- <&-; read -r line </dev/tty; echo got $line >/dev/tty"
    running = begin(service, shared, script)
    with running.stream(TYPES) as viewer:
        viewer.send(b"back\r")
        viewer.until_exit()
    assert running.out() == b"back\r\ngot back\r\n"


# --- what a program sees


def test_it_is_the_controlling_terminal_of_a_session_of_its_own(service: Service, shared: str) -> None:
    script = "tty; stty size </dev/tty; ps -o sid=,pgid=,tpgid= -p $$; echo $$; echo $TERM"
    name, size, ids, pid, term = printed(service, shared, script).decode().split("\r\n")[:5]
    assert (name[:9], size, term) == ("/dev/pts/", "24 80", "xterm")
    assert ids.split() == [pid] * 3


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (10_000, 10_000), (65_535, 65_535)])
def test_size_of_any_measure_works(service: Service, shared: str, rows: int, cols: int) -> None:
    said = printed(service, shared, "stty size", tty={"rows": rows, "cols": cols})
    assert said == f"{rows} {cols}\r\n".encode()


def test_size_of_nothing_is_refused(service: Service, shared: str) -> None:
    body = {"command": ["true"], "tty": {"rows": 0, "cols": 0}}
    status, problem = service.call("POST", f"/sandboxes/{shared}/executions", body)
    assert status == 422
    assert [error["pointer"] for error in problem["errors"]] == ["/tty/rows", "/tty/cols"]


def test_shell_has_job_control(service: Service, shared: str) -> None:
    running = start(service, shared, "bash", "--norc", "-i", tty=True, env={"PS1": "$ "})
    with running.stream(TYPES) as viewer:

        def types(keys: bytes, until: bytes) -> None:
            viewer.out["stdout"].clear()
            viewer.send(keys)
            viewer.until(until)

        viewer.until(b"$ ")
        types(b"cat\r", b"cat\r\n")
        types(b"one\r", b"one\r\none\r\n")
        types(b"\x1a", b"Stopped")
        types(b"jobs -l\r", b"cat\r\n")
        types(b"fg\r", b"cat\r\n")
        types(b"two\r", b"two\r\ntwo\r\n")
        types(b"\x03", b"$ ")
        types(b"echo $?\r", b"130\r\n")
        viewer.send(b"exit 7\r")
        frame = viewer.until_exit()
    assert frame["exit"]["code"] == 7


def test_two_watch_and_one_of_them_types(service: Service, shared: str) -> None:
    running = begin(service, shared, "read line; echo got $line")
    with running.stream(TYPES) as first, running.stream() as second:
        second.say(type="stdin_eof")  # it has no stdin to end
        first.send("grüße\r".encode())
        first.until_exit()
        second.until_exit()
    assert first.out["stdout"] == second.out["stdout"] == "grüße\r\ngot grüße\r\n".encode()


# --- what goes in


@pytest.mark.parametrize(("typed", "out"), [(b"", b""), (b"line\n", b"line\r\nline\r\n"), (b"half", b"halfhalf")])
def test_end_of_stdin_is_typed(service: Service, shared: str, typed: bytes, out: bytes) -> None:
    running = start(service, shared, "cat", tty=True)
    put(service, f"{running.path}/stdin?eof=true", typed)
    assert running.exit()["code"] == 0
    assert running.out() == out


def test_end_of_stdin_is_the_character_that_the_terminal_has_for_it(service: Service, shared: str) -> None:
    running = begin(service, shared, "stty eof ^A; echo ready; cat; stty raw -echo; echo raw; head -c 1 | od -An -tx1")
    running.saw(b"ready")
    with running.stream(TYPES) as viewer:
        viewer.send(b"x\r\x01")
        viewer.until(b"raw")
        viewer.say(type="stdin_eof")
        viewer.until_exit()
    assert running.out().split() == [b"ready", b"x", b"x", b"raw", b"01"]


def test_what_is_pasted_arrives_whole(service: Service, shared: str) -> None:
    """More than the kernel's buffers hold, while the program does not read at first."""
    data = os.urandom(150_000)
    running = begin(service, shared, "stty raw -echo; echo ready; sleep 0.3; head -c 150000 > pasted")
    running.saw(b"ready")
    put(service, f"{running.path}/stdin?eof=true", data)
    assert running.exit()["code"] == 0
    status, found = service.call("GET", f"/sandboxes/{shared}/files?path=pasted")
    assert (status, found) == (200, data)


def test_run_on_a_terminal_ends_without_stdin_and_reads_what_it_gets(service: Service) -> None:
    for stdin, out in ((None, ""), ("hello", "hellohello")):
        status, said = service.call("POST", "/run", {"command": ["cat"], "tty": True, "stdin": stdin})
        assert (status, said["stdout"], said["exit"]["code"]) == (200, out, 0)


# --- the end


def test_what_outlives_the_first_process_gets_sighup(service: Service, shared: str) -> None:
    """The foreground, the background and what is stopped: none of them holds up the exit."""
    job = "sh -c 'trap \"echo $0 >> hung-up; exit\" HUP; echo $0 is up; while :; do sleep 0.05; done'"
    script = f"set -m; {job} background & {job} stopped & read line; kill -STOP %2; kill -KILL $$"
    running = start(service, shared, "bash", "-c", script, tty=True)
    running.saw(b"background is up")
    running.saw(b"stopped is up")
    put(service, f"{running.path}/stdin", b"\n")
    assert running.exit()["signal"] == "SIGKILL"  # of itself: a shell that exits ends its jobs
    read = begin(service, shared, "until [ $(wc -l < hung-up) = 2 ]; do sleep 0.01; done; sort hung-up")
    assert read.exit()["code"] == 0
    assert read.out() == b"background\r\nstopped\r\n"


def test_what_does_not_mind_a_disconnect_lives_on_without_a_terminal(service: Service, shared: str) -> None:
    writes = "import os, signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nprint('up', flush=True)\n"
    writes += "while True:\n try: os.write(1, b'.')\n except OSError as e: open('said', 'w').write(e.strerror); break\n"
    writes += " time.sleep(0.01)"
    running = start(service, shared, "sh", "-c", 'python3 -c "$0" & read line', writes, tty=True)
    running.saw(b"up")
    with running.stream(TYPES) as viewer:
        viewer.send(b"\r")
        viewer.until_exit()
    assert printed(service, shared, "until [ -s said ]; do sleep 0.01; done; cat said") == b"Input/output error"


@pytest.mark.parametrize("tty", [True, False], ids=["terminal", "pipes"])
def test_signals_that_the_service_ignores_are_not_ignored_in_a_command(ignoring: Service, tty: bool) -> None:
    body = {"command": ["grep", "SigIgn", "/proc/self/status"], "tty": tty}
    said = ignoring.call("POST", "/run", body)[1]["stdout"]
    assert int(said.split()[1], 16) & ~LIBCS_OWN == 0, said
    launcher = ignoring.children()["launcher"]
    (line,) = [s for s in Path(f"/proc/{launcher}/status").read_text().splitlines() if s.startswith("SigIgn")]
    assert int(line.split()[1], 16) & 1 << 9, "control: the launcher ignores SIGUSR1"


@pytest.fixture(scope="module")
def ignoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    ignores = ("sh", "-c", "trap '' HUP QUIT USR1 TSTP TTIN TTOU; exec \"$@\"", "sh")
    with Service(tmp_path_factory.mktemp("ignoring"), prefix=ignores) as service:
        yield service


# --- bounds


LEAVES = ("sh", "-c", "trap '' HUP; sleep 1000 & tty")  # what ignores the hangup keeps the terminal open


def leave_behind(service: Service, sandbox: str) -> tuple[list[str], int, dict[str, Any]]:
    """Runs commands that end and leave their terminals in use, until one is refused. Returns the names of those
    terminals, and the status and the body of the refusal."""
    names: list[str] = []
    while len(names) < 100:
        body = {"command": list(LEAVES), "tty": True}
        status, said = service.call("POST", f"/sandboxes/{sandbox}/run", body)
        if status != 200 or said["exit"]["reason"] == "start_failed":
            return names, status, said
        assert said["exit"]["code"] == 0
        names.append(said["stdout"].strip())
    raise AssertionError("none was refused")


def test_sandbox_has_16_terminals_and_gives_them_back(service: Service) -> None:
    sandbox = service.create()
    running = [start(service, sandbox, "sleep", "1000", tty=True) for _ in range(16)]
    one_more = start(service, sandbox, "true", tty=True).exit()
    assert one_more["reason"] == "start_failed"
    assert one_more["detail"] == (
        "step open_terminal failed: ENOSPC (the sandbox has 16 terminals already; what an earlier command left behind "
        "may hold them)"
    )
    neighbour = service.call("POST", "/run", {"command": ["tty"], "tty": True})[1]
    assert neighbour["stdout"] == "/dev/pts/0\r\n"
    assert running[5].delete() == 204
    assert start(service, sandbox, "true", tty=True).exit()["code"] == 0
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_terminal_counts_until_what_was_left_behind_is_gone(service: Service) -> None:
    sandbox = service.create()
    names, status, said = leave_behind(service, sandbox)
    assert names == [f"/dev/pts/{number}" for number in range(16)]
    assert (status, said["exit"]["reason"]) == (200, "start_failed")
    assert "what an earlier command left behind may hold them" in said["exit"]["detail"]
    assert start(service, sandbox, "pkill", "sleep").exit()["code"] == 0

    def free() -> bool:
        return bool(start(service, sandbox, "true", tty=True).exit()["reason"] == "exited")

    host.until(free, "a terminal is free when nobody has it open")
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_sandbox_may_have_half_of_the_terminals_that_others_leave(tmp_path: Path) -> None:
    in_use = int(Path("/proc/sys/kernel/pty/nr").read_text())
    with Service(tmp_path, {"BULKHEAD_PROCESS__MAX_TERMINALS": str(in_use + 16)}) as service:
        held = []
        for _ in range(3):
            sandbox = service.create()
            names, status, problem = leave_behind(service, sandbox)
            assert (status, problem["type"]) == (429, "/problems/capacity_exceeded"), problem
            assert "the host has no more terminals for this sandbox now" in problem["detail"]
            held.append(len(names))
            assert start(service, sandbox, "true").exit()["code"] == 0, "without a terminal it runs"
            assert service.call("GET", f"/sandboxes/{sandbox}")[0] == 200
        # On a host where nobody else opens or closes terminals: 8, 4 and 2.
        assert all(held), "something is always left for the next"
        assert held[0] > held[2], held


def test_nothing_of_a_terminal_is_left(service: Service) -> None:
    def held() -> list[str]:
        found = [name for pid in service.children().values() for name in host.descriptors(pid)]
        return [name for name in found if name.startswith("/dev/pts/")]

    sandbox = service.create()
    for command in (["true"], ["missing"], ["sh", "-c", "nohup sleep 1000 & sleep 0.1"]):
        start(service, sandbox, *command, tty=True).exit()
    host.until(lambda: not held(), "an execution that has ended holds no terminal")
    start(service, sandbox, "sleep", "1000", tty=True)
    assert sorted(set(held())) == ["/dev/pts/0", "/dev/pts/ptmx"], "control: one that runs does"
    service.call("DELETE", f"/sandboxes/{sandbox}")
    host.until(lambda: not held(), "a sandbox that is gone holds no terminal")
