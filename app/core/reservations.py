"""Room in a budget that is waited for, such as memory for the answer of a command that has run already."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from app.core.budget import Budget


@dataclass(frozen=True, slots=True)
class _Waiter:
    count: int
    granted: asyncio.Future[None]


class BudgetQueue:
    """Waits for room in a budget. Clients take turns, and the requests of one client keep their order. A client whose
    share is used up does not delay the others."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._waiting: dict[Hashable, deque[_Waiter]] = {}  # whose turn it is stands first
        budget.watch(self._grant)

    @property
    def waiting(self) -> int:
        """Requests."""
        return sum(map(len, self._waiting.values()))

    async def take(self, holder: Hashable, count: int) -> None:
        """Returns when `count` units were taken. Raises BoundExceeded for more than the holder can ever have. When it
        is cancelled, nothing was taken."""
        self.budget.check_possible(count)
        if holder not in self._waiting and self.budget.fits(holder, count):
            self.budget.take(holder, count)
            return
        waiter = _Waiter(count, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(holder, deque()).append(waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            self._leave(holder, waiter)
            raise

    def _leave(self, holder: Hashable, waiter: _Waiter) -> None:
        if waiter.granted.done() and not waiter.granted.cancelled():
            self.budget.give_back(holder, waiter.count)
            return
        queue = self._waiting[holder]
        queue.remove(waiter)
        if not queue:
            del self._waiting[holder]
        self._grant()  # those behind it may need less

    def _grant(self) -> None:
        while ready := [holder for holder, queue in self._waiting.items() if self._fits(holder, queue[0])]:
            holder = ready[0]
            queue = self._waiting.pop(holder)
            waiter = queue.popleft()
            if queue:
                self._waiting[holder] = queue  # behind the others
            self.budget.take(holder, waiter.count)
            waiter.granted.set_result(None)

    def _fits(self, holder: Hashable, waiter: _Waiter) -> bool:
        return not waiter.granted.done() and self.budget.fits(holder, waiter.count)


class Reservation:
    """What one answer holds of a budget. A block that ends with an error gives everything back. After a block without
    an error, whoever sends the answer closes the reservation."""

    def __init__(self, queue: BudgetQueue, holder: Hashable) -> None:
        self._queue, self._holder = queue, holder
        self.held = 0

    async def take(self, count: int) -> None:
        """Waits for room. Call it once: who holds a part and waits for more could wait for ever. Raises
        BoundExceeded."""
        await self._queue.take(self._holder, count)
        self.held += count

    def shrink(self, count: int) -> None:
        """Gives back what is held beyond `count` units."""
        surplus = max(0, self.held - count)
        self.held -= surplus
        if surplus:
            self._queue.budget.give_back(self._holder, surplus)

    def close(self) -> None:
        """Gives everything back. Repeatable."""
        self.shrink(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.close()
