"""Finds what is new in a stream that is repeated. Pure: bytes in, numbers out.

Every attach repeats each channel's backlog, 256 KiB of whole chunks, from its start, and then goes on live. There are
no offsets. So the repetition is matched with the end of the output that is stored:

- The stored output ends with the beginning of the repetition: that part is known. The longest such part counts, so
  nothing is taken in twice. A channel that repeats itself may lose bytes that nobody could tell apart.
- There is no such part: bytes are missing in between. If the last stored bytes are inside the repetition, something was
  missed earlier (by a busy reader). Otherwise everything is new.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKLOG = 256 * 1024
CHUNK = 4 * 1024  # the server's are 1 KiB, or 3 where it replaced every byte; it always keeps its newest one
PROBE = 64  # bytes: a shorter match may well be chance
STEPS = 1024  # comparisons in one repetition; each must match more than the one before, so few streams need ten


class RecentBytes:
    """The last bytes of a channel: at least `BACKLOG` of them, if there are as many."""

    def __init__(self) -> None:
        self.pieces = 0
        self._bytes = bytearray()

    def add(self, data: bytes) -> None:
        self.pieces += 1
        self._bytes += data
        if len(self._bytes) > 2 * BACKLOG:
            del self._bytes[: -BACKLOG - CHUNK]

    def __len__(self) -> int:
        return len(self._bytes)

    def repetition(self) -> BacklogMatcher:
        return BacklogMatcher(bytes(self._bytes[-BACKLOG - CHUNK :]))


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many bytes at the beginning of the repetition are known. `has_gap` says that bytes are missing before what
    follows."""

    size: int
    has_gap: bool = False


class BacklogMatcher:
    """One repetition, matched while it comes. A frame costs only as much as is new in it."""

    def __init__(self, ours: bytes) -> None:
        self.held = bytearray()  # all that has come
        self._ours = ours
        self._place = 0  # the first one of ours where the repetition may begin; at the end: nowhere
        self._matched = 0  # bytes from there
        self._steps = STEPS

    def take(self, data: bytes) -> Overlap | None:
        """Takes the next bytes. Returns None while the result depends on what comes next."""
        self.held += data
        ours, held = self._ours, self.held
        while self._place < len(ours):
            begin, size = self._matched, min(len(held), len(ours) - self._place)
            if ours[self._place + begin : self._place + size] == held[begin:size]:
                self._matched = size
                return Overlap(size) if size == len(ours) - self._place else None
            self._place, self._matched = self._next(), 0
        return None

    def _next(self) -> int:
        """The next place must match what this one did not, or lie so near to the end that less is needed."""
        ours, held, self._steps = self._ours, self.held, self._steps - 1
        if self._steps < 0:
            return len(ours)
        same, probe = _same(ours[self._place :], held), min(PROBE, len(held))
        found = ours.find(held[: max(same + 1, probe)], self._place + 1)
        if found < 0 and probe == PROBE:
            found = ours.find(held[:PROBE], max(self._place + 1, len(ours) - same))
        return found if found >= 0 else len(ours)

    def settle(self, *, patient: bool) -> Overlap | None:
        """Called when nothing has come for a moment. Returns None when more bytes are needed."""
        if self._place < len(self._ours):  # in the middle of ours, if not just at its end
            return Overlap(len(self.held)) if self._ours.endswith(self.held) else None
        return self._missed_earlier() or (None if patient and len(self.held) <= BACKLOG else self._by_chance())

    def end(self) -> Overlap:
        """Called when nothing more can come."""
        if self._place < len(self._ours):
            return Overlap(len(self.held))
        return self._missed_earlier() or self._by_chance()

    def _missed_earlier(self) -> Overlap | None:
        place = self.held.rfind(self._ours[-PROBE:]) if len(self._ours) >= PROBE else -1
        return Overlap(place + PROBE, has_gap=True) if place >= 0 else None

    def _by_chance(self) -> Overlap:
        """A few bytes may be known, or look so: nothing is taken in twice."""
        sizes = range(min(PROBE, len(self._ours), len(self.held)), 0, -1)
        return Overlap(next((size for size in sizes if self._ours.endswith(self.held[:size])), 0), has_gap=True)


def _same(one: bytes, other: bytearray) -> int:
    """How many bytes at the beginning are the same; by halves, each at the speed of memcmp."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
