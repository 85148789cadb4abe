"""File locks are charged to nobody: who takes too many is ended, and nobody else."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from app.launcher.daemon import file_locks
from app.launcher.daemon.groups import Groups
from tests.kernel import host
from tests.kernel.talk import start
from tests.require import require
from tests.service import Service

# 1,000 in each file: the kernel compares a new lock with all others of its file.
LOCKS = """
import fcntl, os, sys
kept = []
for n in range(int(sys.argv[1])):
    kept.append(os.open(f"{sys.argv[2]}/{os.getpid()}.{n}", os.O_CREAT | os.O_RDWR))
    for at in range(1000):
        fcntl.lockf(kept[-1], fcntl.LOCK_EX, 1, at * 2)
print("holds", flush=True)
sys.stdin.read()
"""
# Descriptors that are slow to list: each stands for one inotify that watches many files. argv: watches, descriptors,
# processes. Prints the processor seconds that reading all of them once would take.
SLOW = """
import ctypes, os, sys, time
watches, descriptors, processes = map(int, sys.argv[1:])
libc = ctypes.CDLL(None)
slow = libc.inotify_init()
for n in range(watches):
    name = f"{os.environ['TMPDIR']}/{n}"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    assert libc.inotify_add_watch(slow, name.encode(), 2) > 0
for _ in range(descriptors):
    os.dup(slow)
before = time.thread_time()
with open(f"/proc/self/fdinfo/{slow}") as file:
    assert file.read().count("inotify wd:") == watches
each = time.thread_time() - before
for _ in range(processes - 1):
    if os.fork() == 0:
        break
else:
    print(each * descriptors * processes, flush=True)
sys.stdin.read()
"""
# A few locks and many rows, all the while.
DATABASE = """
import sqlite3, sys
base = sqlite3.connect("/workspace/base", isolation_level=None)
base.execute("CREATE TABLE t (n)")
print("open", flush=True)
rows = 0
while not rows or sys.stdin.readline():
    for _ in range(2000):
        base.execute("INSERT INTO t VALUES (?)", (rows,))
        rows += 1
print(base.execute("SELECT count(*) FROM t").fetchone()[0] == rows)
"""
MOST = 100_000  # the default


@contextlib.contextmanager
def counted() -> Iterator[Callable[[], int]]:
    counter = file_locks.open_counter()
    require("slabs", counter >= 0, "the kernel does not tell how many locks there are")
    try:
        yield lambda: file_locks.on_host(counter)
    finally:
        os.close(counter)


def test_the_kernel_keeps_as_many_locks_as_a_process_asks_for(tmp_path: Path) -> None:
    """Control, outside of every sandbox."""
    with counted() as count:
        before = count()
        with subprocess.Popen(
            [sys.executable, "-c", LOCKS, "40", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as taker:
            assert taker.stdout is not None
            assert taker.stdout.readline() == b"holds\n"
            assert count() - before > 36_000


def test_holder_of_too_many_locks_is_ended_and_nobody_else(service: Service) -> None:
    sandbox, neighbour = service.create(), service.create()
    database = start(service, neighbour, "python3", "-c", DATABASE, stdin="open")
    database.saw(b"open")
    beside = start(service, sandbox, "python3", "-c", LOCKS, "4", "/tmp", stdin="open")
    beside.saw(b"holds")
    with counted() as count:
        before = count()
        ended = service.run(sandbox, "python3", "-c", LOCKS, "240", "/tmp", stdin="open")["exit"]
        assert (ended["reason"], ended["signal"]) == ("resource_limit", "SIGKILL"), ended
        assert "its sandbox held more than 100000 file locks" in ended["detail"]
        host.until(lambda: count() - before < MOST // 4, "its locks are gone")
    assert beside.show()["state"] == "running"
    assert service.run(sandbox, "echo", "usable")["stdout"] == "usable\n"
    assert service.call("PUT", f"{database.path}/stdin?eof=true")[0] == 204
    assert database.exit()["code"] == 0
    for each in (sandbox, neighbour):
        service.call("DELETE", f"/sandboxes/{each}")


def test_descriptors_that_are_slow_to_list_hide_no_locks_and_hold_up_nobody(service: Service) -> None:
    sandbox, slow_one = service.create(), service.create()
    slow = start(
        service, slow_one, "python3", "-c", SLOW, "5000", "900", "8", stdin="open", env={"TMPDIR": "/workspace"}
    )
    while not (said := slow.out().split()):
        slow.saw(b"\n")
    assert float(said[0]) > 10 * file_locks.BUDGET, "control: the search would take that long"
    launcher = service.children()["launcher"]
    before = host.cpu_ns(launcher)
    taker = start(service, sandbox, "python3", "-c", LOCKS, "240", "/tmp", stdin="open")
    host.until(lambda: any(0 in host.uids_of(pid) for pid in host.children_of(launcher)), "a search is under way")
    assert service.run(service.create(), "echo", "answered")["stdout"] == "answered\n"
    for running in (slow, taker):
        ended = running.exit()
        assert (ended["reason"], ended["signal"]) == ("resource_limit", "SIGKILL"), ended
    assert "could not be counted" in slow.exit()["detail"]
    assert host.cpu_ns(launcher) - before < file_locks.BUDGET * 1e9
    assert service.run(slow_one, "echo", "usable")["stdout"] == "usable\n"
    for each in (sandbox, slow_one):
        service.call("DELETE", f"/sandboxes/{each}")


class OwnProcess:
    """Stands for the groups of an execution whose one process is this one."""

    def alive(self, _: int) -> list[int]:
        return [os.getpid()]


@pytest.mark.parametrize("own_table", [False, True])
def test_locks_count_once_for_each_table_of_descriptors(tmp_path: Path, own_table: bool) -> None:
    """Threads share a table, as a rule; one with a table of its own holds locks that its process does not show."""
    require("root", os.geteuid() == 0, "kcmp wants the right to trace")
    holds, over = threading.Event(), threading.Event()

    def hold() -> None:
        if own_table:
            clone_files = 0x400
            assert ctypes.CDLL(None).unshare(clone_files) == 0
        with (tmp_path / "file").open("w") as file:
            for at in range(50):
                fcntl.lockf(file, fcntl.LOCK_EX, 1, at * 2)
            holds.set()
            over.wait()

    groups = cast(Groups, OwnProcess())
    before = file_locks.count(groups, 1, MOST)
    threads = [threading.Thread(target=hold), *(threading.Thread(target=over.wait) for _ in range(3))]
    for thread in threads:
        thread.start()
    holds.wait()
    try:
        # A table that is copied has the locks of this process a second time: those of earlier tests.
        assert file_locks.count(groups, 1, MOST) == 50 + before * (2 if own_table else 1)
        assert file_locks.count(groups, 1, before + 20) > before + 20
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_kernel_without_a_counter_is_asked_for_its_memory() -> None:
    """Others move it between two looks."""

    def is_told() -> bool:
        kib = int(Path("/proc/meminfo").read_text().partition("SUnreclaim:")[2].split()[0])
        return abs(file_locks.on_host(-1) - kib * 1024 // file_locks.LOCK_BYTES) < 200_000

    assert any(is_told() for _ in range(10))
