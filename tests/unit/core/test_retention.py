"""Retention: the holder that has the most makes room, its oldest first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.core.retention import Retention

SIZE = 100
HOLDERS = "abcd"
SHARE = SIZE // len(HOLDERS)


def test_the_holder_that_has_the_most_gives_up_its_oldest() -> None:
    kept = Retention[str](10)
    kept.add("quiet", "q", 2)
    for number in range(4):
        kept.add("greedy", f"g{number}", 3)
    gone = []
    while kept.full and (item := kept.next_to_go()):
        kept.remove("greedy", item)
        gone.append(item)
    assert (gone, kept.used) == (["g0", "g1"], 8)


def test_nothing_is_left_of_a_holder_without_items() -> None:
    kept = Retention[str](10)
    assert kept.next_to_go() is None
    kept.add("a", "x", 1)
    kept.remove("a", "x")
    kept.remove("a", "x")
    kept.remove("b", "x")
    assert (kept.used, kept.next_to_go()) == (0, None)


@given(st.lists(st.tuples(st.sampled_from(HOLDERS), st.integers(1, SIZE // 5))))
def test_who_has_less_than_an_equal_share_loses_nothing(added: list[tuple[str, int]]) -> None:
    kept, items = Retention[tuple[str, int, int]](SIZE), dict.fromkeys(HOLDERS, 0)
    for number, (holder, units) in enumerate(added):
        kept.add(holder, (holder, number, units), units)
        items[holder] += units
        while kept.full and (item := kept.next_to_go()):
            assert items[item[0]] > SHARE
            kept.remove(item[0], item)
            items[item[0]] -= item[2]
        assert kept.used == sum(items.values()) <= SIZE
