"""Memory that clients fill together has one bound, however many connections share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.core.errors import CapacityExceeded


class Pool:
    """`size` in bytes."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Yields what takes bytes out of the pool, which come back at the end; it raises CapacityExceeded."""
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if count > self._left:
                raise CapacityExceeded("bytes of request bodies at one time", self._size)
            self._left -= count
            held += count

        try:
            yield take
        finally:
            self._left += held
