"""One output stream of an execution: decoding, the backlog that every attach replays, and readers that may lag."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable

CHUNK = 1024
BACKLOG = 256 * 1024
BEHIND = 256  # chunks that a reader may be behind


class Reader:
    """What one attached client has yet to get. Who is too far behind loses the oldest, and nobody is told."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[bytes] = deque()
        self.lagged = False

    def push(self, chunk: bytes) -> None:
        if len(self._waiting) == BEHIND:
            self._waiting.popleft()
            self.lagged = True
        self._waiting.append(chunk)
        self._wake()

    def take(self) -> bytes | None:
        """The next chunk, over a gap if there is one."""
        self.lagged = False
        return self._waiting.popleft() if self._waiting else None

    def take_last(self) -> bytes | None:
        """The same, after the end of the execution: a gap ends the stream, whatever is still waiting."""
        return None if self.lagged else self.take()


class Stream:
    def __init__(self, channel: int) -> None:
        self.channel = bytes([channel])
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # never cuts a character
        self._backlog: deque[bytes] = deque()
        self._size = 0
        self._readers: list[Reader] = []

    def feed(self, raw: bytes) -> None:
        for begin in range(0, len(raw), CHUNK):
            self._add(self._decoder.decode(raw[begin : begin + CHUNK]))

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self._add(self._decoder.decode(b"", final=True))

    def note(self, text: str) -> None:
        """What the server adds on its own when it loses the box."""
        self._add(text)

    def follow(self, wake: Callable[[], None]) -> tuple[list[bytes], Reader]:
        reader = Reader(wake)
        self._readers.append(reader)
        return list(self._backlog), reader

    def leave(self, reader: Reader) -> None:
        self._readers.remove(reader)

    def _add(self, text: str) -> None:
        if not text:
            return
        chunk = text.encode()
        self._backlog.append(chunk)
        self._size += len(chunk)
        while self._size > BACKLOG and len(self._backlog) > 1:
            self._size -= len(self._backlog.popleft())
        for reader in self._readers:
            reader.push(chunk)
