"""What is new of a stream that is repeated. Pure: bytes in, bytes out.

Every attach repeats each channel's backlog, 256 KiB of whole chunks, from its start, and then goes on live; there are
no offsets. So what we have is matched with what comes: the longest end of ours that the repeated bytes begin with. A
channel that repeats itself can be matched at more than one place, and then bytes are missed: nobody can know.
"""

from __future__ import annotations

BACKLOG = 256 * 1024
PROBE = 64  # bytes: a shorter match may well be chance
CANDIDATES = 256  # places that are compared in full: a channel that repeats itself must not cost seconds


class Tail:
    """The last bytes of a channel: at least the last `BACKLOG`, where there are so many."""

    def __init__(self) -> None:
        self.frames = 0
        self._bytes = bytearray()

    def add(self, data: bytes) -> None:
        self.frames += 1
        self._bytes += data
        if len(self._bytes) > 2 * BACKLOG:
            del self._bytes[:-BACKLOG]

    def __len__(self) -> int:
        return len(self._bytes)

    def overlap(self, replay: bytes) -> int | None:
        """How many bytes at the beginning of `replay` we have already; None when it does not go on from ours.

        The whole of it is looked at first, at the speed of memcmp: mostly everything, or everything but its end, is
        known. Then where its first bytes stand in ours, the earliest first.
        """
        ours = bytes(self._bytes)
        if not ours:
            return 0
        if len(replay) <= len(ours) and ours.endswith(replay):
            return len(replay)
        if len(replay) > len(ours) and replay.startswith(ours):
            return len(ours)
        probe = replay[:PROBE]
        place = ours.find(probe) if len(probe) == PROBE else -1
        for _ in range(CANDIDATES):
            if place < 0:
                return None
            length = len(ours) - place
            if length <= len(replay) and ours[place:] == replay[:length]:
                return length
            place = ours.find(probe, place + 1)
        return None

    def holds_beginning(self, replay: bytes) -> bool:
        """`replay` so far is known, and more that is known must follow: what is repeated reaches our end."""
        ours = bytes(self._bytes)
        return not ours.endswith(replay) and replay in ours
