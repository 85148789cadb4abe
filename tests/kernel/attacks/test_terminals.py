"""What a program may not ask of its own terminal. The filter refuses it before Landlock is asked: by the errno that
only the filter gives. Outside, on a terminal that was made for the test, root may do all of it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.require import require
from tests.service import Service

# Name: (command, argument, what a sandbox is told). In the order in which they can be tried outside.
IOCTLS = {
    "TIOCSTI": (0x5412, "type", "EPERM"),  # types as if the person at the terminal did
    "TIOCSETD": (0x5423, "zero", "EPERM"),  # another line discipline: the kernel loads modules for it
    "TIOCCONS": (0x541D, None, "EPERM"),  # takes what the kernel prints on the console
    "TIOCLINUX": (0x541C, "shift", "EPERM"),  # selects and pastes on a virtual console
    "TIOCEXCL": (0x540C, None, "ENOTTY"),  # nobody else can open it
    "TIOCNXCL": (0x540D, None, "ENOTTY"),
    "TIOCGLCKTRMIOS": (0x5456, "modes", "ENOTTY"),
    "TIOCSLCKTRMIOS": (0x5457, "modes", "ENOTTY"),  # modes that nobody can change any more
    "TIOCVHANGUP": (0x5437, None, "ENOTTY"),
}
TRIED = """
import errno, fcntl, json, os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
arguments = {"type": b"x", "zero": bytes(4), "shift": bytes([6]), "modes": bytes(64), None: 0}
found = {}
for name, (command, argument, _) in json.loads(sys.argv[1]).items():
    terminal = os.open("/dev/tty0" if name == sys.argv[2] else "/dev/tty", os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.ioctl(terminal, command, arguments[argument])
        found[name] = "ok"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
    os.close(terminal)
with open(sys.argv[3], "w") as file:
    json.dump(found, file)
"""


def test_ioctl_that_reaches_others_is_refused_on_the_own_terminal(service: Service, sandbox: str) -> None:
    command = ["python3", "-c", TRIED, json.dumps(IOCTLS), "", "/workspace/found"]
    assert service.run(sandbox, *command, tty=True)["exit"]["code"] == 0
    assert service.call("GET", f"/sandboxes/{sandbox}/files?path=found")[1] == {
        name: refusal for name, (_, _, refusal) in IOCTLS.items()
    }


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    require("root", os.geteuid() == 0, "some of it only root may do")
    here, there = pty.openpty()
    found = tmp_path_factory.mktemp("outside") / "found"
    try:
        subprocess.run(
            [sys.executable, "-c", TRIED, json.dumps(_possible_here()), "TIOCLINUX", found],
            stdin=there,
            check=True,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
    finally:
        os.close(here)
        os.close(there)
    said: dict[str, str] = json.loads(found.read_text())
    return said


def _possible_here() -> dict[str, tuple[int, str | None, str]]:
    consoles = Path("/dev/tty0").exists()
    return {name: ioctl for name, ioctl in IOCTLS.items() if name != "TIOCLINUX" or consoles}


@pytest.mark.parametrize("name", IOCTLS)
def test_control_ioctl_works_outside(outside: dict[str, str], name: str) -> None:
    require("virtual console", name in outside, "TIOCLINUX is a command of virtual consoles, and there is none")
    assert outside[name] == "ok"
