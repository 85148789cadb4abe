"""Launcher, egress process and gateway as services: only the launcher was ever root, and each outlives the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.serving.slot import UIDS
from app.settings.process import ProcessSettings
from tests.kernel import host
from tests.kernel.test_start import status_of
from tests.require import require
from tests.service import PATIENCE, PROJECT, Service, clean_environment

GATEWAY, EGRESS = 64_123, 64_125
AS_GATEWAY = ("setpriv", f"--reuid={GATEWAY}", f"--regid={GATEWAY}", "--clear-groups")
AS_EGRESS = ("setpriv", f"--reuid={EGRESS}", f"--regid={GATEWAY}", "--clear-groups")  # its group may connect


def bulkhead(*arguments: str, prefix: tuple[str, ...] = (), **env: str) -> tuple[int, str]:
    """(status, stderr) of a command that ends by itself."""
    command = [*prefix, sys.executable, "-m", "app.cli", *arguments]
    env = clean_environment() | env
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of root, and everybody may go there: pytest's own are private."""
    require("root", os.geteuid() == 0, "the launcher needs root")
    with tempfile.TemporaryDirectory(prefix="bulkhead-apart-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def launcher(socket: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "app.cli", "launcher", "--socket", str(socket), "--gateway-uid", str(GATEWAY)]
    process = subprocess.Popen(command, cwd=PROJECT, env=clean_environment() | env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == f"bulkhead: the launcher listens on {socket}\n"
        yield process
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0, process.stderr.read()
        process.stderr.close()


def egress_folder(folder: Path) -> Path:
    """Made as a service manager makes it: of the egress process, and the gateway's group may enter. Returns the path of
    the socket."""
    made = folder / "egress"
    made.mkdir()
    os.chown(made, EGRESS, GATEWAY)
    made.chmod(0o710)
    return made / "egress.sock"


@contextmanager
def egress(socket: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "app.cli", "egress", "--socket", str(socket), "--gateway-uid", str(GATEWAY)]
    process = subprocess.Popen(
        [*AS_EGRESS, *command], cwd=PROJECT, env=clean_environment() | env, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == f"bulkhead: the egress process listens on {socket}\n"
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)
        process.stderr.close()


@contextmanager
def gateway(folder: Path, socket: Path, **env: str) -> Iterator[Service]:
    data = folder / "data"
    data.mkdir(parents=True)
    os.chown(data, GATEWAY, GATEWAY)
    with Service(data, {"BULKHEAD_PROCESS__LAUNCHER_SOCKET": str(socket), **env}, prefix=AS_GATEWAY) as service:
        yield service


def launcher_of(process: subprocess.Popen[str]) -> int:
    (pid,) = host.children_of(process.pid)
    return pid


def test_a_gateway_that_was_never_root_makes_sandboxes_with_all_layers(folder: Path) -> None:
    socket = folder / "launcher.sock"
    with launcher(socket), gateway(folder, socket) as service:
        pid = service.process.pid
        assert host.children_of(pid) == [], "it starts nothing"
        assert host.uids_of(pid) == (GATEWAY,) * 4
        status, sandbox = service.call("POST", "/sandboxes", {})
        assert status == 201, sandbox
        assert sandbox["isolation"]["missing_layers"] == []
        assert service.run(sandbox["id"], "id", "-u")["stdout"] == "1000\n"
        assert (socket.stat().st_uid, socket.stat().st_mode & 0o777) == (GATEWAY, 0o600)


def test_the_launcher_takes_its_ceilings_from_its_own_environment(folder: Path) -> None:
    """The gateway believes in 4096 MiB, and may ask for them."""
    socket = folder / "launcher.sock"
    with launcher(socket, BULKHEAD_LIMITS__MEMORY_MIB__CEILING="600"), gateway(folder, socket) as service:
        status, problem = service.call("POST", "/sandboxes", {"limits": {"memory_mib": 700}})
        assert (status, problem["type"]) == (500, "/problems/launch_failed"), problem
        assert "memory" in problem["detail"]
        service.create(limits={"memory_mib": 600})


def test_a_launcher_that_is_killed_is_found_again_and_its_sandboxes_are_lost(folder: Path) -> None:
    socket = folder / "launcher.sock"
    with launcher(socket) as process, gateway(folder, socket) as service:
        sandbox = service.create()
        os.kill(launcher_of(process), signal.SIGKILL)
        host.until(lambda: service.call("GET", f"/sandboxes/{sandbox}")[1]["state"] == "failed", "it is lost")
        host.until(lambda: service.call("GET", "/readyz")[0] == 200, "another one answers")
        assert service.run(service.create(), "echo", "again")["stdout"] == "again\n"


def test_a_gateway_that_is_killed_leaves_no_sandbox_and_a_launcher_that_serves_the_next(folder: Path) -> None:
    socket = folder / "launcher.sock"
    with launcher(socket) as process:
        with gateway(folder / "one", socket) as service:
            uid = host.host_uid(service, service.create())
            service.process.kill()
            service.process.wait(PATIENCE)
            host.until(lambda: not host.processes_of(uid), "its sandbox ends with it")
        with gateway(folder / "two", socket) as service:
            assert service.run(service.create(), "echo", "next")["stdout"] == "next\n"
        assert process.poll() is None


def test_nothing_is_left_of_a_launcher_that_ended(folder: Path) -> None:
    socket = folder / "launcher.sock"
    with launcher(socket), gateway(folder, socket) as service:
        uid = host.host_uid(service, service.create())
        first = uid - (uid - ProcessSettings().uid_base) % UIDS
        assert host.left_of(first) != []
    with host.kept(first):
        assert host.left_of(first) == []


def test_the_check_says_whether_a_launcher_answers(folder: Path) -> None:
    socket = folder / "launcher.sock"
    check = ("launcher", "--check", "--socket", str(socket))
    status, said = bulkhead(*check)
    assert (status, "does not answer" in said) == (1, True), said
    with launcher(socket):
        assert bulkhead(*check) == (0, "")
        status, said = bulkhead(*check, prefix=("setpriv", "--reuid=64124", "--clear-groups"))
        assert (status, "Permission denied" in said) == (1, True), said


def test_a_root_gateway_of_another_service_is_refused(folder: Path) -> None:
    status, said = bulkhead("serve", BULKHEAD_PROCESS__LAUNCHER_SOCKET=str(folder / "launcher.sock"))
    assert (status, "must not run as root" in said) == (2, True), said


@pytest.mark.parametrize(("owner", "mode"), [(0, 0o777), (0, 0o775), (GATEWAY, 0o755)])
def test_a_folder_in_which_others_can_put_things_is_refused(folder: Path, owner: int, mode: int) -> None:
    folder.chmod(mode)
    os.chown(folder, owner, owner)
    status, said = bulkhead("launcher", "--socket", str(folder / "launcher.sock"), "--gateway-uid", str(GATEWAY))
    assert (status, "must belong to root" in said) == (2, True), said


def test_a_folder_below_one_in_which_others_can_put_things_is_refused(folder: Path) -> None:
    """Whoever owns the folder above can put another in its place, or a link to what root then gives away."""
    (folder / "run").mkdir(mode=0o755)
    os.chown(folder, GATEWAY, GATEWAY)
    socket = str(folder / "run/launcher.sock")
    status, said = bulkhead("launcher", "--socket", socket, "--gateway-uid", str(GATEWAY))
    assert (status, "above it must belong to root" in said) == (2, True), said


def test_a_launcher_that_does_not_know_its_gateway_or_socket_does_not_start(folder: Path) -> None:
    status, said = bulkhead("launcher", "--socket", str(folder / "launcher.sock"))
    assert (status, "BULKHEAD_PROCESS__GATEWAY_UID" in said) == (2, True), said
    status, said = bulkhead("launcher", "--gateway-uid", str(GATEWAY))
    assert (status, "BULKHEAD_PROCESS__LAUNCHER_SOCKET" in said) == (2, True), said
    status, said = bulkhead("launcher", "--socket", str(folder / "no/launcher.sock"), "--gateway-uid", str(GATEWAY))
    assert (status, "No such file" in said) == (2, True), said


def test_a_launcher_that_is_not_root_says_so(folder: Path) -> None:
    options = ("launcher", "--socket", str(folder / "launcher.sock"), "--gateway-uid", str(GATEWAY))
    status, said = bulkhead(*options, prefix=AS_GATEWAY)
    assert (status, "started as root" in said) == (2, True), said


# --- the egress process


def test_egress_process_of_its_own_has_no_privilege_and_nothing_of_its_environment(folder: Path) -> None:
    socket = egress_folder(folder)
    with egress(socket, BULKHEAD_API_KEYS='["a-key-that-is-secret"]') as process:
        check = ("egress", "--check", "--socket", str(socket))
        assert bulkhead(*check, prefix=AS_EGRESS) == (0, "")
        status = status_of(process.pid)
        assert set(status["Uid"].split()) == {str(EGRESS)}
        assert set(status["Gid"].split()) == {str(GATEWAY)}
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert b"BULKHEAD" not in Path(f"/proc/{process.pid}/environ").read_bytes()
        found = socket.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (EGRESS, GATEWAY, 0o660)
        for mapped in ("pydantic", "uvicorn"):
            assert mapped not in Path(f"/proc/{process.pid}/maps").read_text(), "the gateway's libraries are gone"


def test_check_says_whether_an_egress_process_answers_also_beside_a_gateway(folder: Path) -> None:
    path = egress_folder(folder)
    check = ("egress", "--check", "--socket", str(path))
    status, said = bulkhead(*check, prefix=AS_EGRESS)
    assert (status, "does not answer: No such file" in said) == (1, True), said
    with egress(path) as process:
        connect = (
            "import socket, sys; it = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); it.connect(sys.argv[1]);"
            " print(it.recv(100), flush=True); sys.stdin.read()"
        )
        command = [*AS_GATEWAY, sys.executable, "-c", connect, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as served:
            assert served.stdout is not None
            assert b"hello" in served.stdout.readline(), "the control: this one is served as the gateway"
            assert bulkhead(*check, prefix=AS_EGRESS) == (0, "")
            status, said = bulkhead(*check)
            assert (status, "another user" in said) == (1, True), said
            served.communicate()
        other = ("setpriv", "--reuid=64124", "--regid=64124", "--clear-groups")
        status, said = bulkhead(*check, prefix=other)
        assert (status, "Permission denied" in said) == (1, True), said
        process.kill()
        process.wait(PATIENCE)
        status, said = bulkhead(*check, prefix=AS_EGRESS)
        assert (status, "Connection refused" in said) == (1, True), said


def test_check_of_an_egress_process_that_hangs_fails(folder: Path) -> None:
    path = egress_folder(folder)
    with egress(path) as process:
        assert bulkhead("egress", "--check", "--socket", str(path), prefix=AS_EGRESS) == (0, "")
        process.send_signal(signal.SIGSTOP)
        try:
            status, said = bulkhead("egress", "--check", "--socket", str(path), prefix=AS_EGRESS)
        finally:
            process.send_signal(signal.SIGCONT)
        assert (status, "does not answer: timed out" in said) == (1, True), said


@pytest.mark.parametrize(("owner", "mode"), [(EGRESS, 0o770), (EGRESS, 0o707), (GATEWAY, 0o700)])
def test_egress_process_refuses_a_folder_in_which_others_can_put_things(folder: Path, owner: int, mode: int) -> None:
    path = egress_folder(folder)
    os.chown(path.parent, owner, GATEWAY)
    path.parent.chmod(mode)
    options = ("egress", "--socket", str(path), "--gateway-uid", str(GATEWAY))
    status, said = bulkhead(*options, prefix=AS_EGRESS)
    assert (status, f"must belong to root or uid {EGRESS}" in said) == (2, True), said


def test_egress_process_is_neither_root_nor_the_gateways_user(folder: Path) -> None:
    options = ("egress", "--socket", str(egress_folder(folder)), "--gateway-uid", str(GATEWAY))
    for prefix in ((), AS_GATEWAY):
        status, said = bulkhead(*options, prefix=prefix)
        assert (status, "neither root nor the gateway's user" in said) == (2, True), said


def test_egress_process_that_does_not_know_its_gateway_or_socket_does_not_start(folder: Path) -> None:
    path = egress_folder(folder)
    status, said = bulkhead("egress", "--socket", str(path), prefix=AS_EGRESS)
    assert (status, "BULKHEAD_PROCESS__GATEWAY_UID" in said) == (2, True), said
    status, said = bulkhead("egress", "--gateway-uid", str(GATEWAY), prefix=AS_EGRESS)
    assert (status, "BULKHEAD_EGRESS__SOCKET" in said) == (2, True), said
    status, said = bulkhead("egress", "--check", prefix=AS_EGRESS)
    assert (status, "BULKHEAD_EGRESS__SOCKET" in said) == (1, True), said
    assert bulkhead("egress", "--check", prefix=AS_EGRESS, BULKHEAD_NONSENSE="1")[0] == 1
    (folder / "of_root").mkdir(mode=0o755)
    options = ("egress", "--socket", str(folder / "of_root/egress.sock"), "--gateway-uid", str(GATEWAY))
    status, said = bulkhead(*options, prefix=AS_EGRESS)
    assert (status, "cannot listen" in said, "Permission denied" in said) == (2, True, True), said


def test_socket_of_an_egress_process_without_that_of_a_launcher_is_refused(folder: Path) -> None:
    status, said = bulkhead("serve", BULKHEAD_EGRESS__SOCKET=str(folder / "egress.sock"))
    assert (status, "BULKHEAD_PROCESS__LAUNCHER_SOCKET" in said) == (2, True), said
