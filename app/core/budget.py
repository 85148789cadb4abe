"""A budget: one number for the whole service, shared fairly. Connections, streams and bytes on disk are budgets."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from app.core.errors import BoundExceeded, CapacityExceeded, Holder


class Budget:
    """`size` units of `what`. A holder may have half of what the others leave. One alone gets a half, the next a
    quarter, and something is always left for the next.

    >>> budget = Budget("streams", 12, "client")
    >>> budget.take("a", 6), budget.share("a"), budget.share("b")
    (None, 6, 3)
    """

    def __init__(
        self, what: str, size: int, holders: Holder, *, shared: bool = True, retry_seconds: int = 1, unit: int = 1
    ) -> None:
        """`holders` is the kind of holder, `sandbox` or `client`. If not `shared`, there is one holder, which may have
        everything. `unit` is the divisor for texts: 1024 * 1024 where `size` is in bytes and `what` in MiB."""
        self.what, self.size, self.holders = what, size, holders
        self.used = 0
        self._shared, self._retry_seconds, self._unit = shared, retry_seconds, unit
        self._held: dict[Hashable, int] = {}
        self._wakers: list[Callable[[], None]] = []

    def watch(self, wake: Callable[[], None]) -> None:
        """Calls `wake` each time units were given back."""
        self._wakers.append(wake)

    def resize(self, size: int) -> None:
        """What is held stays held, also where it is more than the new size."""
        self.size = size

    def held(self, holder: Hashable) -> int:
        return self._held.get(holder, 0)

    def share(self, holder: Hashable) -> int:
        """The most that this holder may hold now."""
        return self._share_of(self.size - self.used + self.held(holder))

    def _share_of(self, left: int) -> int:
        return (left + 1) // 2 if self._shared else left

    def fits(self, holder: Hashable, count: int = 1) -> bool:
        held = self._held.get(holder, 0)
        return held + count <= self._share_of(self.size - self.used + held)

    def check(self, holder: Hashable, count: int = 1) -> None:
        """Raises what `take` would raise, and takes nothing."""
        if not self.fits(holder, count):
            self._refuse(holder, count)

    def _refuse(self, holder: Hashable, count: int) -> NoReturn:
        self.check_possible(count)
        limit, retry_seconds = self.size // self._unit, self._retry_seconds
        if self.used + count > self.size:
            raise CapacityExceeded(self.what, limit, retry_after_seconds=retry_seconds)
        share = self.share(holder) // self._unit, self.held(holder) // self._unit
        raise CapacityExceeded(self.what, limit, self.holders, share=share, retry_after_seconds=retry_seconds)

    def check_possible(self, count: int) -> None:
        """Raises BoundExceeded for more than a holder could have if nothing were held."""
        if count > (most := self._share_of(self.size)):
            raise BoundExceeded(self.what.replace("MiB", "bytes", 1), most, "send less at once")

    def take(self, holder: Hashable, count: int = 1) -> None:
        """Raises CapacityExceeded, and BoundExceeded for more than any holder can ever have."""
        held = self._held.get(holder, 0)
        if held + count > self._share_of(self.size - self.used + held):
            self._refuse(holder, count)
        self.used += count
        self._held[holder] = held + count

    def give_back(self, holder: Hashable, count: int = 1) -> None:
        left = self._held.get(holder, 0) - count
        if left < 0:
            raise ValueError(f"{holder!r} gives back more than it holds")
        self.used -= count
        if left:
            self._held[holder] = left
        else:
            self._held.pop(holder, None)  # who holds nothing is not remembered: holders come and go
        for wake in self._wakers:
            wake()

    @contextmanager
    def holding(self, holder: Hashable, count: int = 1) -> Iterator[None]:
        """Raises what `take` raises."""
        self.take(holder, count)
        try:
            yield
        finally:
            self.give_back(holder, count)

    @contextmanager
    def taking(self, holder: Hashable) -> Iterator[Callable[[int], None]]:
        """Yields a function that takes more units and raises what `take` raises. All units are given back at the
        end."""
        held = 0

        def take(count: int) -> None:
            nonlocal held
            self.check_possible(held + count)
            self.take(holder, count)
            held += count

        try:
            yield take
        finally:
            self.give_back(holder, held)


class Account:
    """The part of a budget that one holder has in use, until the account is closed."""

    def __init__(self, budget: Budget, holder: Hashable) -> None:
        self._budget, self._holder = budget, holder
        self._is_closed = False

    def fits(self, count: int) -> bool:
        return self._budget.fits(self._holder, count)

    def check(self, count: int) -> None:
        """Raises CapacityExceeded if `take` would, and takes nothing."""
        self._budget.check(self._holder, count)

    def take(self, count: int) -> None:
        """Raises CapacityExceeded."""
        self._budget.take(self._holder, count)

    def give_back(self, count: int) -> None:
        """Does nothing after `close`: then everything was given back, and the next holder may have the same name."""
        if not self._is_closed:
            self._budget.give_back(self._holder, count)

    def close(self) -> int:
        """Gives everything back, and returns how much that was. Repeatable."""
        if self._is_closed:
            return 0
        self._is_closed = True
        held = self._budget.held(self._holder)
        self._budget.give_back(self._holder, held)
        return held
