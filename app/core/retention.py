"""Keeps things that have ended while there is room. All share one size, and the largest holder makes room.

`Retention` is for anything. `EndedOutput` is for the output of executions.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from app.core.output import OutputLog

Item = TypeVar("Item", bound=Hashable)
# What the smallest output counts for: its block on disk. It bounds how many small ones make room for a large one.
LEAST = 4096


class Retention(Generic[Item]):
    """Keeps at most `size` units of items. When there are more, the holder that has the most loses its oldest item. So
    a holder that has less than an equal share (`size` divided by the number of holders) loses nothing to others.

    >>> kept = Retention[str](3)
    >>> kept.add("a", "a1", 1), kept.add("a", "a2", 1), kept.add("b", "b1", 1), kept.full, kept.next_to_go()
    (None, None, None, False, 'a1')
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._held: dict[Hashable, int] = {}
        self._items: dict[Hashable, dict[Item, int]] = {}  # of each holder, the oldest first, with their units

    @property
    def full(self) -> bool:
        """Whether an item has to go."""
        return self.used > self.size

    def __contains__(self, item: Item) -> bool:
        return any(item in items for items in self._items.values())

    def add(self, holder: Hashable, item: Item, units: int) -> None:
        self._items.setdefault(holder, {})[item] = units
        self._held[holder] = self._held.get(holder, 0) + units
        self.used += units

    def remove(self, holder: Hashable, item: Item) -> None:
        """Removes an item. Does nothing if it is not there."""
        items = self._items.get(holder, {})
        if item not in items:
            return
        units = items.pop(item)
        self._held[holder] -= units
        self.used -= units
        if not items:  # holders come and go
            del self._items[holder], self._held[holder]

    def next_to_go(self) -> Item | None:
        """The oldest item of the holder that has the most. None when there is no item."""
        return next(self.of_the_largest(), None)

    def of_the_largest(self) -> Iterator[Item]:
        """The items of the holder that has the most, the oldest first."""
        return iter(self._items[max(self._held, key=self._held.__getitem__)] if self._held else ())


class EndedOutput:
    """Output of ended executions that is still in memory, `size` bytes of all sandboxes. When it is used up, the
    sandbox that has the most moves its oldest output to its spill, where it reads as before. So no sandbox with less
    than an equal share loses its output because of others, even when the spill is full."""

    def __init__(self, size: int) -> None:
        self._logs = Retention[tuple[str, OutputLog]](size)

    @property
    def used(self) -> int:
        return self._logs.used

    def add(self, sandbox_id: str, log: OutputLog) -> None:
        """Adds a closed log."""
        if log.spilled:  # all that memory has is there too
            log.leave_memory()
        if not log.in_memory:
            return
        self._logs.add(sandbox_id, (sandbox_id, log), max(log.in_memory, LEAST))
        while self._logs.full and (oldest := self._logs.next_to_go()):
            self._logs.remove(oldest[0], oldest)
            oldest[1].leave_memory()

    def discard(self, sandbox_id: str, log: OutputLog) -> None:
        """Drops the bytes of a log, in memory and in the spill."""
        self._logs.remove(sandbox_id, (sandbox_id, log))
        log.discard()
