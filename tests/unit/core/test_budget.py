"""Budgets: one number for all, and a share for each holder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.budget import Budget
from app.core.errors import BoundExceeded, CapacityExceeded


def _share(holder: str, held: int, whole: str, most: int) -> str:
    """The sentence, as a pattern."""
    has = f"this {holder} has {held} of the service's {whole}"
    return f"^{has} and may have at most {most} now; free some, or try again later$"


def filled(budget: Budget, holder: str) -> int:
    """How many an holder gets that takes all it can."""
    while budget.fits(holder):
        budget.take(holder)
    return budget.held(holder)


def test_one_owner_gets_half_and_each_next_half_of_what_is_left() -> None:
    budget = Budget("streams", 16, "client")
    assert [filled(budget, holder) for holder in "abcdef"] == [8, 4, 2, 1, 1, 0]
    assert budget.used == 16


def test_a_refusal_names_the_budget_and_whose_share_is_used_up() -> None:
    budget = Budget("streams", 16, "client", retry_seconds=7)
    filled(budget, "a")
    with pytest.raises(CapacityExceeded, match=_share("client", 8, "16 streams", 8)) as refused:
        budget.take("a")
    assert (refused.value.budget, refused.value.holder, refused.value.retry_after_seconds) == ("streams", "client", 7)
    for holder in "bcdef":
        filled(budget, holder)
    with pytest.raises(
        CapacityExceeded, match=r"^the service's limit of 16 streams is reached; try again later$"
    ) as refused:
        budget.take("g")
    assert refused.value.holder == "service"


def test_a_refusal_tells_its_numbers_in_the_unit_of_its_text() -> None:
    budget = Budget("MiB of output", 64 << 20, "sandbox", unit=1 << 20)
    budget.take("a", 8 << 20)
    with pytest.raises(CapacityExceeded, match=_share("sandbox", 8, "64 MiB of output", 32)):
        budget.check("a", 32 << 20)
    assert budget.used == 8 << 20


def test_what_no_holder_could_ever_have_is_no_matter_of_time() -> None:
    budget = Budget("MiB of output", 64 << 20, "sandbox", unit=1 << 20)
    budget.check("a", 32 << 20)
    text = (
        "^the request needs more than 33554432 bytes of output, which is the most that it can have; send less at once$"
    )
    with pytest.raises(BoundExceeded, match=text) as refused:
        budget.check("a", (32 << 20) + 1)
    assert (refused.value.bound, refused.value.limit) == ("bytes of output", 32 << 20)
    with budget.taking("a") as take:
        take(32 << 20)
        with pytest.raises(BoundExceeded, match=text):
            take(1)
    assert budget.used == 0
    Budget("streams", 4, "client", shared=False).check("a", 4)


def test_holder_who_has_more_than_what_the_others_leave_now_is_told_both_numbers() -> None:
    budget = Budget("streams", 16, "client")
    filled(budget, "a")
    filled(budget, "b")
    with pytest.raises(CapacityExceeded, match=_share("client", 8, "16 streams", 6)):
        budget.take("a")


def test_the_only_owner_may_hold_all() -> None:
    budget = Budget("streams", 16, "client", shared=False)
    assert filled(budget, "a") == 16


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_the_last_ones_are_for_somebody(size: int) -> None:
    budget = Budget("streams", size, "client")
    assert sum(filled(budget, holder) for holder in "abcd") == size


def test_what_was_held_is_given_back_whatever_happens() -> None:
    budget = Budget("streams", 4, "client")
    with pytest.raises(KeyError), budget.holding("a", 2):
        raise KeyError
    assert (budget.used, budget.held("a")) == (0, 0)
    with pytest.raises(ValueError, match="gives back more"):
        budget.give_back("a")


def test_what_was_taken_little_by_little_is_given_back_as_a_whole() -> None:
    budget = Budget("bytes", 8, "client")
    budget.take("b", 2)
    with pytest.raises(CapacityExceeded), budget.taking("a") as take:
        take(1)
        take(2)
        assert budget.held("a") == 3
        take(1)
    assert (budget.used, budget.held("a")) == (2, 0)


def test_budget_that_became_smaller_than_what_is_held_takes_nothing_back_and_gives_nothing() -> None:
    budget = Budget("streams", 12, "client")
    budget.take("a", 6)
    budget.resize(4)
    assert (budget.held("a"), budget.used) == (6, 6)
    for holder in ("a", "b"):
        with pytest.raises(CapacityExceeded, match="the service's limit of 4 streams is reached"):
            budget.take(holder)
    budget.resize(12)
    budget.take("b", 3)


@given(st.integers(0, 40), st.lists(st.tuples(st.sampled_from("abc"), st.integers(-5, 9)), max_size=60))
def test_nothing_is_lost_and_nobody_shuts_others_out(size: int, deeds: list[tuple[str, int]]) -> None:
    budget = Budget("streams", size, "client")
    for holder, count in deeds:
        if count < 0:
            budget.give_back(holder, min(-count, budget.held(holder)))
        elif budget.fits(holder, count):
            others = budget.used - budget.held(holder)
            budget.take(holder, count)
            assert budget.held(holder) <= (size - others + 1) // 2
    assert budget.used == sum(budget.held(holder) for holder in "abc") <= size
