"""The guest of one box: makes its namespaces and its root, starts its commands, reaps them. A program of its own.

`python -I -S guest/__main__.py FD ROOT [shares-network]`: FD is a SOCK_SEQPACKET socket to the double, ROOT the box's
disk.
As root in namespaces of its own, otherwise in a user namespace too. Its children live in the box's PID namespace and
it does not, as the agent in a real microVM is outside of the container: a command sees 0 as its parent. When its
socket ends it ends the box and then itself.

Requests are JSON: `boot` makes PID 1 up to its exec, `run` lets it go on, `spawn` starts another command, `signal`
signals one. Every one is answered; `{"exit": pid, "code": n}` comes in between when a process was reaped.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
SET_PDEATHSIG, DROP_FROM_BOUNDING_SET = 1, 24
BIND = 4096
CAPABILITIES = 0xA80425FB  # those of the real container's root: Docker's
LARGEST = 4 << 20


class Unable(Exception):
    """A command cannot be started: the reason is the message, one word and perhaps a detail."""


def mount_processes() -> None:
    """By PID 1 itself, so that it shows the box's processes."""
    if LIBC.mount(b"proc", b"/proc", b"proc", 0, None):
        raise OSError(ctypes.get_errno(), "mount /proc")
    for name in ("cpuinfo", "meminfo"):  # those of the virtual machine, where the double has written them
        source = f"/run/{name}"
        if os.path.exists(source) and LIBC.mount(source.encode(), f"/proc/{name}".encode(), None, BIND, None):
            raise OSError(ctypes.get_errno(), f"mount /proc/{name}")


def find(program: str, environment: dict[str, str]) -> str:
    """Where the program is: looked up in the command's own PATH, as the container runtime does it."""
    folders = environment.get("PATH", "").split(":")
    candidates = [program] if "/" in program else [f"{folder}/{program}" for folder in folders]
    found = [path for path in candidates if os.path.exists(path)]
    for path in found:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise Unable("denied " + found[0] if found else "missing")


def account(user: str) -> tuple[int, int]:
    """`name|uid[:group|gid]` as numbers."""
    name, _, group = user.partition(":")
    tables = {}
    for table in ("passwd", "group"):
        with open(f"/etc/{table}") as file:
            tables[table] = {line.split(":")[0]: line.rstrip("\n").split(":") for line in file}
    known = tables["passwd"].get(name)
    if known is None and not name.isdigit():
        raise Unable("user " + name)
    uid, gid = (int(known[2]), int(known[3])) if known else (int(name), 0)
    if group:
        gid = int(group) if group.isdigit() else int(tables["group"][group][2])
    return uid, gid


class Guest:
    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.gate = self.report = -1
        self.first = 0

    def say(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the end is noticed where we listen
            socket.send_fds(self.channel, [json.dumps(message).encode()], descriptors or [])

    def become(self, request: dict[str, Any], stdio: list[int], report: int, gate: int) -> NoReturn:
        """In the child: from here to the command. What fails is written to `report`."""
        try:
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT):
                signal.signal(ignored, signal.SIG_DFL)
            os.setsid()
            if gate >= 0:
                mount_processes()
            for target in range(3):
                os.dup2(stdio[min(target, len(stdio) - 1)], target)
            if request["tty"]:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            try:
                os.chdir(request["cwd"])
            except OSError as error:
                raise Unable("cwd") from error
            path = find(request["argv"][0], request["env"])
            for number in range(64):
                if not CAPABILITIES >> number & 1:
                    LIBC.prctl(DROP_FROM_BOUNDING_SET, number, 0, 0, 0)  # EINVAL beyond the last one
            uid, gid = account(request["user"])
            if (uid, gid) != (0, 0):
                os.setgroups([])
                os.setgid(gid)
                os.setuid(uid)
            if gate >= 0:
                LIBC.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                os.write(report, b"ready")
                if not os.read(gate, 1):
                    os._exit(0)
            os.execve(path, request["argv"], request["env"])
        except Unable as error:
            os.write(report, str(error).encode())
        except Exception as error:  # a child that does not exec must not go on as a second guest
            os.write(report, f"broken {error!r}".encode())
        os._exit(127)

    def start(self, request: dict[str, Any], stdio: list[int]) -> None:
        """Forks the command and answers when it runs, or, for PID 1, when only its exec is left to do."""
        master = slave = gate_read = gate_write = -1
        boots = request["op"] == "boot"
        try:
            if request["tty"]:
                master, slave = os.openpty()
                fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
                stdio = [slave]
            report_read, report_write = os.pipe()
            if boots:
                gate_read, gate_write = os.pipe()
            pid = os.fork()
            if pid == 0:
                self.become(request, stdio, report_write, gate_read)
            os.close(report_write)
            report = os.read(report_read, 4096).decode()
            if report == "ready":
                self.gate, self.report, self.first = gate_write, report_read, pid
            else:
                os.close(report_read)
            if report in {"", "ready"}:
                self.say({"reply": request["id"], "pid": pid}, [master] if request["tty"] else [])
            else:
                os.waitpid(pid, 0)
                self.say({"reply": request["id"], "error": report})
        except OSError:  # the box's PID 1 is gone, so fork fails; its end will be told as soon as all others have
            self.say({"reply": request["id"], "error": "ending"})
        finally:
            for descriptor in (*stdio, master, gate_read):
                if descriptor >= 0:
                    os.close(descriptor)

    def answer(self, request: dict[str, Any], stdio: list[int]) -> None:
        if request["op"] in {"boot", "spawn"}:
            self.start(request, stdio)
            return
        error = ""
        try:
            if request["op"] == "signal":
                os.kill(request["pid"], request["signal"])
            elif request["op"] == "run":
                os.write(self.gate, b"1")
                error = os.read(self.report, 4096).decode()
        except OSError as failure:
            error = repr(failure)
        self.say({"reply": request["id"]} | ({"error": error} if error else {}))

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.first = 0 if pid == self.first else self.first
            self.say({"exit": pid, "code": os.waitstatus_to_exitcode(status)})

    def end(self) -> None:
        """Nothing may be left to the host's init: where that does not reap, the box would never be gone."""
        if self.first:
            os.kill(self.first, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)

    def serve(self) -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.say({"reply": 0})
        while True:
            ready, _, _ = select.select([self.channel.fileno(), reader], [], [])
            if reader in ready:
                os.read(reader, 4096)
            if self.channel.fileno() in ready:
                try:
                    message, descriptors, _, _ = socket.recv_fds(self.channel, LARGEST, 3)
                except ConnectionResetError:  # the double left before it had read everything
                    message = b""
                if not message:
                    self.end()
                    return
                for descriptor in descriptors:  # a command has these as 0, 1 and 2, and not a second time
                    os.set_inheritable(descriptor, False)
                self.answer(json.loads(message), descriptors)
            self.reap()


def main() -> None:
    sys.path.insert(0, __file__.partition("/tests/boxlite/")[0])
    from tests.boxlite.guest.room import isolate

    channel = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(channel.fileno(), False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the tests; the guest ends with them
    guest = Guest(channel)
    try:
        isolate(sys.argv[2], shares_network=len(sys.argv) > 3)
    except OSError as error:
        guest.say({"reply": 0, "error": f"isolate {error}"})
        return
    guest.serve()


if __name__ == "__main__":
    main()
