"""Messages about bytes that were dropped before they could be read."""

from __future__ import annotations

from app.client.stream import Gap


class Gaps:
    """Reports the first gap of a channel at once, and all gaps in one line at the end, as there may be thousands. A gap
    of unknown size is reported only at the end."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}  # of each channel: how many, and their bytes
        self._unknown: dict[str, None] = {}  # channels with a gap that nobody measured, in their order

    def add(self, gap: Gap) -> str | None:
        if gap.end is None:
            self._unknown[gap.channel] = None
            return None
        count, size = self._seen.get(gap.channel, (0, 0))
        self._seen[gap.channel] = (count + 1, size + gap.end - gap.begin)
        if count:
            return None
        return f"{gap.channel}: bytes {gap.begin} to {gap.end - 1} are missing: they were dropped before they were read"

    def summary(self) -> list[str]:
        counted = [
            f"{channel}: {size} bytes are missing in {count} gaps"
            for channel, (count, size) in self._seen.items()
            if count > 1
        ]
        lost = "the runtime lost some output; nobody knows how much"
        return counted + [f"{channel}: {lost}" for channel in self._unknown]
