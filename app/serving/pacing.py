"""How much of the event loop one connection may have: rates, and how much input is parsed in one slice."""

from __future__ import annotations

import time
from collections.abc import Callable


class TokenBucket:
    """Gives `rate` tokens a second, and saves at most `burst` of them."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._filled_at = burst, clock()

    def take(self, count: float) -> bool:
        """Takes tokens. Returns False, and takes nothing, when there are not enough."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if count > self._left:
            return False
        self._left -= count
        return True


class SliceSize:
    """How many bytes to parse at once: `least` when they contain many pieces, and twice as many each time they are
    `few`, up to `most`."""

    def __init__(self, least: int, most: int, few: int) -> None:
        self._least, self._most, self._few = least, most, few
        self.bytes = least

    def learn(self, pieces: int) -> bool:
        """Notes how many pieces there were in the last slice. Returns whether they were few."""
        few = pieces <= self._few
        self.bytes = min(2 * self.bytes, self._most) if few else self._least
        return few
