"""What sockets may not cost the host: buffers that no control group is charged for. And what is left of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.service import Service

UNCHARGED = {
    "netlink": "s = socket.socket(16, socket.SOCK_RAW, 0)",
    "timestamps": "u.setsockopt(socket.SOL_SOCKET, 37, 1)",
    "corked by option": "u.setsockopt(17, 1, 1)",
    "corked by flag": "u.sendto(b'x', 0x8000, ('127.0.0.1', 9))",
}
SCRIPT = """
import errno, socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    {0}
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("allowed")
"""


@pytest.mark.parametrize("what", UNCHARGED)
def test_memory_that_nobody_is_charged_for_is_refused(service: Service, sandbox: str, what: str) -> None:
    expected = "EAFNOSUPPORT" if what == "netlink" else "EPERM"
    assert service.run(sandbox, "python3", "-c", SCRIPT.format(UNCHARGED[what]))["stdout"] == expected + "\n"


QUEUED = """
import errno, socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:
    u.setsockopt(0, 11, 1)
    u.connect(("127.0.0.1", 9))
    u.send(b"x")
    try:
        u.recv(1)
    except OSError as error:
        print(errno.errorcode[error.errno])
    print(u.getsockopt(0, 11))
    try:
        u.recvmsg(100, 100, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        print("queued")
    except BlockingIOError:
        print("nothing is queued")
"""


def test_errors_of_datagrams_are_told_and_never_queued(service: Service, sandbox: str) -> None:
    """glibc's resolver gives up on a name server where it cannot ask for the queue, which nobody is charged for."""
    said = service.run(sandbox, "python3", "-c", QUEUED)["stdout"]
    assert said == "ECONNREFUSED\n0\nnothing is queued\n"
    control = subprocess.run([sys.executable, "-c", QUEUED], capture_output=True, text=True, check=True)
    assert control.stdout == "ECONNREFUSED\n1\nqueued\n"


@pytest.mark.parametrize("what", UNCHARGED)
def test_control_the_same_works_unconfined(what: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT.format(UNCHARGED[what])], capture_output=True)
    assert done.stdout == b"allowed\n"


def test_profile_loopback_tells_the_own_addresses(service: Service) -> None:
    sandbox = service.create(policy={"profile": "loopback"})
    done = service.run(sandbox, "python3", "-c", "import socket; print(socket.if_nameindex())")
    assert done["stdout"] == "[(1, 'lo')]\n"
    receipt = service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]
    assert receipt["seccomp"]["profile"] == "loopback"


def test_standard_streams_can_be_opened_by_name(service: Service, sandbox: str) -> None:
    done = service.run(sandbox, "sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin; echo $?")
    assert (done["stdout"], done["stderr"]) == ("out\n0\n", "err\n")


def test_two_processes_are_two_for_a_program_that_forks_at_once(service: Service) -> None:
    sandbox = service.create(limits={"processes": 2})
    for _ in range(20):
        done = service.run(sandbox, "sh", "-c", "/bin/true; echo ok")
        assert (done["stdout"], done["stderr"]) == ("ok\n", "")


def test_one_process_cannot_fork(service: Service) -> None:
    sandbox = service.create(limits={"processes": 1})
    for _ in range(10):
        done = service.run(sandbox, "sh", "-c", "/bin/true; echo ok")
        assert "Cannot fork" in done["stderr"]
