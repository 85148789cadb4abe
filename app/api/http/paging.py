"""Lists in pages. A cursor is the place of the last item seen, so changes between two pages do not shift the items."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from app.api.http.cursors import cursor_at, foreign_cursor, place_of
from app.core.timeslices import TimeSlices


class PageQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Annotated[str | None, Field(max_length=64, description="`next_cursor` of the page before")] = None


class Placed(Protocol):
    @property
    def sequence(self) -> int: ...


P = TypeVar("P", bound=Placed)


def sequence_of(cursor: str) -> int:
    """Raises InvalidRequest for a cursor that `page` never gave."""
    place = place_of(cursor)
    if not place.isdigit() or b"%d" % int(place) != place:
        raise foreign_cursor()
    return int(place)


async def page(
    items: Iterable[P], query: PageQuery, wanted: Callable[[P], bool] = lambda _: True
) -> tuple[list[P], str | None]:
    """Returns at most `limit` of the `wanted` items, and the cursor for the rest. `items` come oldest first."""
    after = -1 if query.cursor is None else sequence_of(query.cursor)
    slices = TimeSlices.of_loop()
    chosen: list[P] = []
    for item in tuple(items):  # they may change while others have their turn
        if slices.over:
            await slices.next()
        if item.sequence <= after or not wanted(item):
            continue
        if len(chosen) == query.limit:
            return chosen, cursor_at(b"%d" % chosen[-1].sequence)
        chosen.append(item)
    return chosen, None
