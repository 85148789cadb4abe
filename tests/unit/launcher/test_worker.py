"""The worker's reaping, in a process of its own: it reaps whatever child there is."""

from __future__ import annotations

import subprocess
import sys

REAP = """
import os
from app.launcher.sandbox import worker

seen = []

def look(session):
    with open(f"/proc/{session}/stat") as file:
        seen.append(file.read().rpartition(")")[2].split()[0])

worker._hang_up = look
made = worker.Worker.__new__(worker.Worker)
made._children = os.eventfd(1)
made._tell = lambda *said: seen.append(said)
child = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], os.environ)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
made._leaders, made._on_terminals = {child: 7}, {child}
made._reap()
assert seen == ["Z", (worker.EXITED, 7, 3 << 8, 0)], seen
assert (made._leaders, made._on_terminals) == ({}, set())
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("reaped")
"""


def test_session_is_hung_up_before_its_leader_is_reaped() -> None:
    """Its number could be another's after that."""
    said = subprocess.run([sys.executable, "-c", REAP], capture_output=True, text=True, check=False, timeout=60)
    assert (said.stdout, said.returncode) == ("reaped\n", 0), said.stderr
