"""At most so many in a second, with some more at once after a rest."""

from __future__ import annotations

import time
from collections.abc import Callable


class Rate:
    """A token bucket: `per_second` on average, `burst` at once."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst = per_second, burst
        self._left = burst
        self._clock = clock
        self._at = clock()

    def take(self) -> bool:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    @property
    def wait_seconds(self) -> float:
        """Until `take` succeeds again, after it has failed."""
        return max(0.0, (1 - self._left) / self._per_second)
