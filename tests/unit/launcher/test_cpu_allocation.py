"""Which processors sandboxes get."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.launcher.daemon.cpu_allocation import CpuAllocator

FOUR = [0, 1, 2, 3]


@pytest.mark.parametrize(("millis", "count"), [(10, 1), (1000, 1), (1001, 2), (2500, 3), (4000, 4), (9000, 4)])
def test_as_many_as_the_limit_rounded_up_and_no_more_than_there_are(millis: int, count: int) -> None:
    assert len(CpuAllocator().allocate(FOUR, millis)) == count


def test_sandboxes_are_spread_over_all() -> None:
    allocator = CpuAllocator()
    used = Counter(cpu for _ in range(8) for cpu in allocator.allocate(FOUR, 1000))
    assert used == dict.fromkeys(FOUR, 2)


def test_least_loaded_one_is_taken() -> None:
    """Weighed by the limits: a quarter of a cpu on 0 is less than half of one on 1, and 2 and 3 have 0.75 each."""
    allocator = CpuAllocator()
    assert [allocator.allocate(FOUR, millis) for millis in (250, 500, 1500)] == [[0], [1], [2, 3]]
    assert [allocator.allocate(FOUR, 1000) for _ in range(2)] == [[0], [1]]


def test_what_was_given_back_is_taken_again() -> None:
    allocator = CpuAllocator()
    first = [allocator.allocate(FOUR, 1000) for _ in range(4)]
    allocator.give_back(first[2], 1000)
    assert allocator.allocate(FOUR, 1000) == first[2]


def test_one_sandbox_after_the_other_has_each_processor_in_turn() -> None:
    allocator = CpuAllocator()
    taken = []
    for _ in range(5):
        taken += allocator.allocate(FOUR, 500)
        allocator.give_back(taken[-1:], 500)
    assert taken == [0, 1, 2, 3, 0]


def test_only_usable_processors_are_taken() -> None:
    allocator = CpuAllocator()
    allocator.allocate(FOUR, 4000)
    assert allocator.allocate([1, 3], 4000) == [1, 3]


@given(st.lists(st.tuples(st.integers(10, 9000), st.booleans()), max_size=30))
def test_nothing_is_left_of_sandboxes_that_have_ended(sandboxes: list[tuple[int, bool]]) -> None:
    allocator, living = CpuAllocator(), []
    for millis, ends in sandboxes:
        cpus = allocator.allocate(FOUR, millis)
        if ends:
            allocator.give_back(cpus, millis)
        else:
            living.append((cpus, millis))
    for cpus, millis in living:
        allocator.give_back(cpus, millis)
    assert set(allocator._loads.values()) <= {0}
