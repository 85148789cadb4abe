"""How much of the event loop one connection may have: rates, and how much input is parsed in one slice."""

from __future__ import annotations

import time
from collections.abc import Callable


class TokenBucket:
    """`rate` tokens a second, at most `burst` of them saved up."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._filled_at = burst, clock()

    def take(self, count: float) -> bool:
        """False, and nothing is taken, when there are not so many."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if count > self._left:
            return False
        self._left -= count
        return True


class SliceSize:
    """How many bytes to parse at once: `least` where they turn out to be many pieces, twice as many each time they are
    `few`, up to `most`."""

    def __init__(self, least: int, most: int, few: int) -> None:
        self._least, self._most, self._few = least, most, few
        self.bytes = least

    def learn(self, pieces: int) -> bool:
        """How many there were in the last slice. Whether they were few."""
        few = pieces <= self._few
        self.bytes = min(2 * self.bytes, self._most) if few else self._least
        return few
