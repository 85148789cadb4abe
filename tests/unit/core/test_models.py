from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.models import Exit, ExitReason, _Clock, exit_code_for_shells, is_id, new_id
from app.core.text import byte_length


def test_ids_sort_by_creation_even_within_one_millisecond() -> None:
    ids = [new_id("sbx_") for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(is_id(name) and len(name) == 30 for name in ids)


def test_ids_sort_by_creation_when_the_clock_goes_back() -> None:
    times = iter([2_000, 1_000, 1_000, 3_000])
    clock = _Clock(lambda: next(times) * 1_000_000)
    numbers = [clock.next() for _ in range(4)]
    assert numbers == sorted(set(numbers))
    assert numbers[3] >> 80 == 3_000


def test_ids_cannot_be_guessed_from_their_neighbours() -> None:
    clock = _Clock()
    numbers = [clock.next() for _ in range(1000)]
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    assert len(steps) == 999
    assert min(steps) > 2**32


@pytest.mark.parametrize("name", ["a", "0", "a-b_c", "a" * 63])
def test_good_ids_are_taken(name: str) -> None:
    assert is_id(name)


@pytest.mark.parametrize("name", ["", "A", "-a", "_a", "a" * 64, "a\n", "a/b", "..", "ä", "a b"])
def test_bad_ids_are_refused(name: str) -> None:
    assert not is_id(name)


@pytest.mark.parametrize(
    ("exit_", "signal", "code"),
    [
        (Exit(ExitReason.EXITED, code=0), None, 0),
        (Exit(ExitReason.EXITED, code=137), None, 137),
        (Exit(ExitReason.SIGNALED, signal="SIGSEGV"), 11, -11),
        (Exit(ExitReason.TIMEOUT, signal="SIGKILL"), 9, -9),
        (Exit(ExitReason.START_FAILED, not_found=True), None, 127),
        (Exit(ExitReason.START_FAILED), None, 126),
        (Exit(ExitReason.LOST), None, -1),
    ],
)
def test_shells_get_one_integer(exit_: Exit, signal: int | None, code: int) -> None:
    assert exit_code_for_shells(exit_, signal) == code


@given(st.text(st.characters()))
def test_length_is_that_of_the_bytes_or_none_where_there_are_none(text: str) -> None:
    surrogates = any("\ud800" <= c <= "\udfff" for c in text)
    assert byte_length(text) == (None if surrogates else len(text.encode()))
