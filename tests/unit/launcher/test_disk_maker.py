"""The child that makes a disk: it never says that a disk is made which its clone has not got.

Each test is a program of its own, as a child may only be cloned from a program with one thread.
"""

from __future__ import annotations

import errno
import subprocess
import sys

PROGRAM = """
import os, select, signal, socket
from app.launcher.daemon import disk_maker
from app.launcher.protocol import packets

class Storage:
    descriptors = []
    def make_template(self, usable_bytes):
        return os.open("/dev/null", os.O_RDONLY)
    def make_disk(self, template, usable_bytes, owner):
        return os.open("/dev/null", os.O_RDONLY)

def result():
    "(errno, whether the clone has got the disk)"
    maker = disk_maker.DiskMaker(Storage(), -1, 1 << 24, 0, launchers)
    select.select([maker.pidfd], [], [])
    found = maker.reap().errno
    try:
        return found, len(packets.receive(clones, socket.MSG_DONTWAIT)[1]) == 1
    except OSError:
        return found, False

send = packets.send
launchers, clones = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
"""


def output_of(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM + program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_disk_that_is_made_is_with_its_clone() -> None:
    assert output_of("print(*result())") == "0 True"


def test_child_that_is_killed_after_its_first_packet_has_failed() -> None:
    program = """
def send_and_die(*arguments):
    send(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
packets.send = send_and_die
print(*result())
"""
    assert output_of(program) == f"{errno.EIO} True"


def test_child_that_is_killed_after_its_last_packet_has_failed() -> None:
    program = """
def send_and_die(channel, *arguments):
    send(channel, *arguments)
    if channel is not launchers:
        os.kill(os.getpid(), signal.SIGKILL)
packets.send = send_and_die
print(*result())
"""
    assert output_of(program) == f"{errno.EIO} True"


def test_disk_that_cannot_be_sent_is_a_failure() -> None:
    program = """
launchers.setblocking(False)
try:
    while True:
        launchers.send(bytes(4096))
except BlockingIOError:
    print(*result())
"""
    assert output_of(program) == f"{errno.EAGAIN} False"


def test_clone_that_has_ended_is_no_failure_of_the_disk() -> None:
    """The launcher says why it has ended."""
    assert output_of("clones.close()\nprint(*result())") == "0 False"
