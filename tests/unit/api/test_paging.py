from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.http.cursors import cursor_at
from app.api.http.paging import PageQuery, page, sequence_of
from app.core.errors import InvalidRequest


@dataclass(frozen=True)
class Item:
    sequence: int


@given(st.integers(0, 2**63))
def test_a_cursor_comes_back_as_the_place_it_was_made_of(sequence: int) -> None:
    assert sequence_of(cursor_at(b"%d" % sequence)) == sequence


@given(st.text(max_size=64))
def test_any_other_text_is_refused_and_nothing_else_happens(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert cursor_at(b"%d" % sequence_of(text)) == text


@pytest.mark.parametrize("cursor", ["", "=", "MQ==", " MQ", "LTE", "MDE", "MV8w", "é"])
def test_what_was_never_given_out_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="query/cursor"):
        sequence_of(cursor)


@given(st.sets(st.integers(0, 300)), st.integers(1, 50))
def test_pages_together_are_the_list(places: set[int], limit: int) -> None:
    items = [Item(n) for n in sorted(places)]
    seen: list[Item] = []
    cursor: str | None = None
    while True:
        found, cursor = asyncio.run(page(items, PageQuery(limit=limit, cursor=cursor)))
        seen += found
        if cursor is None:
            break
        assert len(found) == limit
    assert seen == items
