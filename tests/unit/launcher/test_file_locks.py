"""Which executions end when a sandbox holds too many file locks, and when it is worth looking for them."""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.core.models import ExitReason
from app.launcher import file_locks
from app.launcher.file_locks import LockHolders, beyond
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


def searches(holders: LockHolders) -> bool:
    return holders.descriptor >= 0


def test_search_begins_when_half_the_limit_was_added_to_the_fewest(clock: Clock, counter: Counter) -> None:
    holders = counter.holders(500)
    for locks in (1250, 900, 1150):
        counter.says(locks)
        assert holders.sample(held()) == []
        assert not searches(holders)
    counter.says(1151)
    assert holders.sample(held()) == []
    assert searches(holders)
    assert holders.take() == []
    counter.says(1401)
    holders.sample(held())
    assert not searches(holders), "it counts from what a search has seen"


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
        [verdict] = holders.take()
    assert (verdict.sandbox, verdict.number) == (sandboxes[0], 7)
    assert ExitReason(verdict.reason) is ExitReason.RESOURCE_LIMIT
    assert "more than 20 file locks" in verdict.detail
    counter.says(9999)
    clock.now += 2.9
    holders.sample(held())
    assert not searches(holders)
    clock.now += 0.2
    holders.sample(held())
    assert searches(holders)
    holders.take()


def test_search_that_was_killed_is_done_again(clock: Clock, counter: Counter) -> None:
    holders = counter.holders(20)
    counter.says(1100)
    broken = held()
    broken[0].running = None  # the child fails
    holders.sample(broken)
    assert holders.take() == []
    clock.now += 1
    holders.sample(held())
    assert searches(holders)
    holders.take()


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
    assert not searches(holders)
    assert host.own_descriptors() == before
