"""Which executions end when a sandbox holds too many file locks, and when it is worth looking for them."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.core.models import ExitReason
from app.launcher.daemon import file_locks
from app.launcher.daemon.file_locks import LockHolders, beyond
from app.launcher.daemon.watch import Verdict
from tests.kernel import host


@pytest.mark.parametrize(
    ("held", "ending"),
    [
        ([(5, 1), (5, 2)], []),
        ([(11, 1)], [(11, 1)]),
        ([(3, 1), (9, 2)], [(9, 2)]),
        ([(6, 1), (7, 2), (8, 3)], [(8, 3), (7, 2)]),
    ],
)
def test_largest_holders_end_until_the_others_are_within_the_limit(
    held: list[tuple[int, int]], ending: list[tuple[int, int]]
) -> None:
    assert beyond(held, 10) == ending


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return time.process_time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(file_locks, "time", clock)
    return clock


class Counter:
    """Stands for the kernel's, and starts at 1,000 locks."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.says(1000)
        self.descriptor = os.open(file, os.O_RDONLY)

    def says(self, locks: int) -> None:
        self.file.write_text(f"{locks} N0={locks}\n")

    def holders(self, most: int) -> LockHolders:
        return LockHolders(most, self.descriptor, select.poll(), [])


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    counter = Counter(tmp_path / "total_objects")
    yield counter
    os.close(counter.descriptor)


def held(*pids: int) -> list[Any]:
    """A sandbox with one execution, whose processes `pids` are."""
    return [SimpleNamespace(id="one", running=[7], groups=SimpleNamespace(alive=lambda _: list(pids)))]


def what_it_found(holders: LockHolders) -> list[Verdict]:
    """As the launcher's loop does, until the search has ended."""
    found: list[Verdict] = []
    while holders.searching:
        found += holders.go_on()
        if holders.descriptor >= 0 and select.select([holders.descriptor], [], [], 60)[0]:
            found += holders.take()
    return found


def child_that_hangs(monkeypatch: pytest.MonkeyPatch, says: bytes, cpu_seconds: float = 0) -> None:
    """The next search's child says this, uses that much processor time, and does not end."""

    def report(_: object, __: int, write: int, ___: object) -> None:
        os.write(write, says)
        while time.process_time() < cpu_seconds:
            pass
        os.write(write, b"looks")
        while True:
            time.sleep(60)

    monkeypatch.setattr(file_locks, "_report", report)


def hear(holders: LockHolders) -> list[Verdict]:
    """What it says next."""
    assert select.select([holders.descriptor], [], [], 60)[0]
    return holders.take()


def test_search_begins_when_half_the_limit_was_added_to_the_fewest(clock: Clock, counter: Counter) -> None:
    holders = counter.holders(500)
    for locks in (1250, 900, 1150):
        counter.says(locks)
        assert holders.sample(held()) == []
        assert not holders.searching
    counter.says(1151)
    assert holders.sample(held()) == []
    assert holders.searching
    assert what_it_found(holders) == []
    counter.says(1401)
    holders.sample(held())
    assert not holders.searching, "it counts from what a search has seen"


def test_search_names_who_holds_too_many_and_rests_as_long_as_it_took(clock: Clock, counter: Counter) -> None:
    holders = counter.holders(20)
    counter.says(1100)
    with counter.file.open("r+") as locked:
        for at in range(50):
            fcntl.lockf(locked, fcntl.LOCK_EX, 1, at * 2)
        sandboxes = held(os.getpid())
        holders.sample(sandboxes)
        descriptor = holders.descriptor
        holders.sample(sandboxes)
        assert holders.descriptor == descriptor, "one search at a time"
        clock.now += 3
        [verdict] = what_it_found(holders)
    assert (verdict.sandbox, verdict.number) == (sandboxes[0], 7)
    assert ExitReason(verdict.reason) is ExitReason.RESOURCE_LIMIT
    assert "more than 20 file locks" in verdict.detail
    counter.says(9999)
    clock.now += 2.9
    holders.sample(held())
    assert not holders.searching
    clock.now += 0.2
    holders.sample(held())
    assert holders.searching
    what_it_found(holders)


def test_search_that_was_killed_is_done_again(clock: Clock, counter: Counter) -> None:
    holders = counter.holders(20)
    counter.says(1100)
    broken = held()
    broken[0].running = None  # the child fails
    holders.sample(broken)
    assert what_it_found(holders) == []
    clock.now += 1
    holders.sample(held())
    assert holders.searching
    what_it_found(holders)


def test_search_without_a_process_for_it_leaves_no_descriptor(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fork() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", no_fork)
    holders = counter.holders(20)
    counter.says(1100)
    before = host.own_descriptors()
    assert holders.sample(held()) == []
    assert not holders.searching
    assert host.own_descriptors() == before


def test_child_that_does_not_end_never_holds_up_the_launcher_and_is_killed(
    clock: Clock, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.own_descriptors()
    holders = counter.holders(20)
    counter.says(1100)
    child_that_hangs(monkeypatch, b"looks one 7 0.0\nholds one 7 30\nhol")
    holders.sample(held())
    assert holders.milliseconds_left == int(file_locks.SECONDS * 1000) + 1
    found: list[Verdict] = []
    while not found:
        found = hear(holders)
    assert [verdict.number for verdict in found] == [7], "what it said is not kept back"
    while select.select([holders.descriptor], [], [], 0)[0]:
        holders.take()
    assert holders.take() == [], "nothing to read, and it returns"
    assert holders.go_on() == []
    assert holders.searching
    clock.now += file_locks.SECONDS + 0.1
    assert what_it_found(holders) == [], "it used no processor time on the execution under way"
    assert not holders.searching
    assert holders.milliseconds_left is None
    assert host.own_descriptors() == before
    clock.now += file_locks.SECONDS + 0.2
    holders.sample(held())
    assert holders.searching, "a search that was not completed is done again"
    clock.now += file_locks.SECONDS + 0.1
    what_it_found(holders)


def test_execution_at_which_a_killed_search_spent_its_budget_is_ended(
    clock: Clock, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = counter.holders(20)
    counter.says(1100)
    monkeypatch.setattr(file_locks, "BUDGET", 0.05)
    child_that_hangs(monkeypatch, b"looks one 7 0.0\n", cpu_seconds=0.1)
    holders.sample(held())
    assert hear(holders) == []
    assert hear(holders) == [], "it has used that time"
    clock.now += file_locks.SECONDS + 0.1
    [verdict] = what_it_found(holders)
    assert (verdict.number, verdict.reason) == (7, "resource_limit")


def test_sandbox_at_which_a_search_was_killed_is_looked_at_last(
    clock: Clock, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = counter.holders(20)
    counter.says(1100)
    sandboxes = [
        SimpleNamespace(id=name, running=[], groups=SimpleNamespace(alive=lambda _: [])) for name in ("a", "b", "c")
    ]
    child_that_hangs(monkeypatch, b"looks b 7 0.0\n")
    holders.sample(sandboxes)  # type: ignore[arg-type]
    hear(holders)
    clock.now += file_locks.SECONDS + 0.1
    what_it_found(holders)
    clock.now += file_locks.SECONDS + 0.2

    def report(order: list[Any], _: int, write: int, __: object) -> None:
        os.write(write, "".join(f"hides {sandbox.id} 7\n" for sandbox in order).encode())
        os._exit(0)

    monkeypatch.setattr(file_locks, "_report", report)
    holders.sample(sandboxes)  # type: ignore[arg-type]
    assert [verdict.sandbox.id for verdict in what_it_found(holders)] == ["c", "a", "b"]


def test_executions_that_the_budget_of_their_sandbox_does_not_suffice_for_count_as_holders(
    clock: Clock, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest is counted first. Another sandbox has a budget of its own."""
    monkeypatch.setattr(file_locks, "BUDGET", 0.05)
    processes = {1: [11, 12], 2: [21], 3: [31, 32, 33]}

    def count(_: object, number: int, __: int, until: float) -> int:
        while number == 1 and time.process_time() <= until:
            pass
        if time.process_time() > until:
            raise file_locks.Uncountable
        return 10

    monkeypatch.setattr(file_locks, "count", count)
    holders = counter.holders(20)
    counter.says(1100)
    slow = SimpleNamespace(id="slow", running=[1, 2, 3], groups=SimpleNamespace(alive=processes.__getitem__))
    usual = SimpleNamespace(id="usual", running=[4], groups=SimpleNamespace(alive=lambda _: [41]))
    holders.sample([slow, usual])  # type: ignore[list-item]
    found = what_it_found(holders)
    assert [(verdict.sandbox.id, verdict.number, verdict.reason) for verdict in found] == [
        ("slow", 1, "resource_limit"),
        ("slow", 3, "resource_limit"),
    ]
    assert "could not be counted in 0.05 s" in found[0].detail
    clock.now += 1
    holders.sample([])
    assert holders.searching, "what the sandbox hid is not taken for what was there before"
    what_it_found(holders)


def test_no_descriptor_is_read_beyond_the_budget() -> None:
    groups: Any = SimpleNamespace(alive=lambda _: [os.getpid()])
    with pytest.raises(file_locks.Uncountable):
        file_locks.count(groups, 7, 100, until=time.process_time())


def test_what_follows_the_locks_of_a_file_is_not_read() -> None:
    read, write = os.pipe()
    try:
        locks = b"pos:\t0\n" + b"lock:\t1: POSIX\n" * 100
        os.write(write, locks.ljust(40_000, b"."))
        assert file_locks._count_file(read, 50) == 100
        os.write(write, b"inotify wd:1\n" * 1000)
        assert file_locks._count_file(read, 50) == 0, "it would wait for the end of the pipe otherwise"
    finally:
        os.close(read)
        os.close(write)
