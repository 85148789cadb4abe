"""Memory that clients fill together has one bound, however many connections share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.core.budget import Budget


class Pool:
    """`size` in bytes. Not `shared`: there is one client, who may have all."""

    def __init__(self, size: int, *, shared: bool = False) -> None:
        self._budget = Budget("bytes of request bodies at one time", size, "client", shared=shared)

    @contextmanager
    def holding(self, client: str) -> Iterator[Callable[[int], None]]:
        """Yields what takes bytes out of the pool, which come back at the end; it raises CapacityExceeded."""
        held = 0

        def take(count: int) -> None:
            nonlocal held
            self._budget.take(client, count)
            held += count

        try:
            yield take
        finally:
            self._budget.give_back(client, held)
