"""What something costs in processor time, whatever else the machine does and however fast it is.

Wall clock measures the other work of the machine. Processor time does not, but a slower machine takes more of it, and a
host that stops a virtual processor charges the time to whoever runs. So costs are given as on the machine on which the
bounds of the tests were chosen, and are the least of several times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_REFERENCE = 0.0007  # seconds that `_reference` took there
_REFERENCE_AT_TIMES = 0.0008  # and so many at most in nine times of ten with cold caches
_LARGE = bytearray(24 << 20)  # more than the caches of a processor have room for


def cost(call: Callable[[], object], times: int = 5) -> float:
    """Seconds of this thread's processor time for one call: the least of so many, each of which does the same."""
    return min(_seconds(call) for _ in range(times)) / slowness()


def slowness() -> float:
    """How many times as long as there the same work takes here and now; at least 1."""
    return max(1, statistics.median(_seconds(_reference) for _ in range(21)) / _REFERENCE)


def slowness_at_times() -> float:
    """The same for one time in ten, and where other work has just had the caches: so much may happen to what runs once.
    A machine that is emulated beside the tests doubles it."""
    return max(1, statistics.quantiles((_seconds_cold() for _ in range(30)), n=10)[-1] / _REFERENCE_AT_TIMES)


def _reference() -> None:
    """Some arithmetic and some copies. It leaves nothing to the collector."""
    piece = bytes(range(256)) * 256
    assert sum(value % 7 for value in range(8000)) + b"".join([piece] * 16).count(b"\n")


def _seconds_cold() -> float:
    bytes(_LARGE)
    return _seconds(_reference)


def _seconds(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began
