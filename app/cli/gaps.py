"""What is said about bytes that were dropped before they could be read."""

from __future__ import annotations

from app.client.stream import Gap


class Gaps:
    """The first gap of a channel is told at once, all of them in one line at the end: there may be thousands."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}  # of each channel: how many, and their bytes

    def add(self, gap: Gap) -> str | None:
        count, size = self._seen.get(gap.channel, (0, 0))
        self._seen[gap.channel] = (count + 1, size + gap.end - gap.begin)
        if count:
            return None
        return f"{gap.channel}: bytes {gap.begin} to {gap.end - 1} are missing: they were dropped before they were read"

    def summary(self) -> list[str]:
        return [
            f"{channel}: {size} bytes are missing in all, in {count} gaps"
            for channel, (count, size) in self._seen.items()
            if count > 1
        ]
