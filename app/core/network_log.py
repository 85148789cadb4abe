"""What a sandbox did with its network: its connections, each once at its end, and what was refused."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from app.core.budget import Account

EVENTS = 1000  # that are kept of one sandbox
# What an event counts for. Measured: 740 bytes with short texts, 1,620 with the longest name, rule, method and path.
EVENT_BYTES = 1664
REFUSED = 32  # distinct refusals that a summary has

EventKind = Literal["name", "connection", "request"]
NetworkVerdict = Literal["allowed", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class NetworkEvent:
    """A refused name, a connection, or a refused request inside one.

    `at`: when it was over, in seconds since 1970. `address`: the one that was dialled, or that the program asked for.
    `verdict`: `failed` where a rule permitted it, and the host or its name server was the reason. `rule`: the one that
    permitted it, as people read it. `reason`: a word, why it was refused, failed or was cut. `execution_id`: None where
    the sandbox has had more than one, as nobody knows then which one it was. Bytes are
    those of the program: what it sent, what it received. `method` and `path`: those of a refused request, cut to a
    length; `path` is as it was sent, without the query. None where the request could not be read.
    """

    at: float
    kind: EventKind
    name: str | None
    address: str | None
    port: int | None
    verdict: NetworkVerdict
    rule: str | None
    reason: str | None
    bytes_sent: int = 0
    bytes_received: int = 0
    duration_seconds: float = 0.0
    method: str | None = None
    path: str | None = None
    execution_id: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """`sequence` counts all events of the sandbox, from 0."""

    sequence: int
    event: NetworkEvent


@dataclass(frozen=True, slots=True)
class RefusedHost:
    """A host that was refused. `port`: None for a name that was only looked up. `count`: how often, in what is kept."""

    name: str | None
    address: str | None
    port: int | None
    reason: str | None
    count: int


class NetworkLog:
    """The newest events, at most `most`. The oldest go first. `total` counts all that came.

    One writer, who adds an event before the program in the sandbox can know of it. Many readers.
    """

    def __init__(self, most: int = EVENTS) -> None:
        self._most = most
        self._events: deque[LoggedEvent] = deque()
        self._account: Account | None = None
        self.total = 0
        self.closed = False
        self._executions = 0
        self._execution: str | None = None  # the only one so far
        self._wakers: set[Callable[[], None]] = set()

    def charge(self, account: Account) -> None:
        """From now on events count towards the account. Where it has no room, the oldest ones go."""
        self._account = account

    def began(self, execution_id: str) -> None:
        """An execution of the sandbox is about to begin."""
        self._executions += 1
        self._execution = execution_id if self._executions == 1 else None

    # --- the writer's side

    def add(self, event: NetworkEvent) -> None:
        """Does nothing after `close`."""
        if self.closed:
            return
        while len(self._events) >= self._most or not self._has_room():
            if not self._events:
                return self.drop(1)
            self._let_go()
        if self._account is not None:
            self._account.take(EVENT_BYTES)
        self._events.append(LoggedEvent(self.total, replace(event, execution_id=self._execution)))
        self.total += 1
        self._wake()

    def drop(self, count: int) -> None:
        """So many events came and are not kept. Later ones come after a gap."""
        if not self.closed:
            self.total += count
            self._wake()

    def close(self) -> None:
        """No more events can come, and readers at the end learn this. Idempotent."""
        self.closed = True
        self._wake()

    def _has_room(self) -> bool:
        return self._account is None or self._account.fits(EVENT_BYTES)

    def _let_go(self) -> None:
        self._events.popleft()
        if self._account is not None:
            self._account.give_back(EVENT_BYTES)

    def _wake(self) -> None:
        for wake in tuple(self._wakers):
            wake()

    # --- the readers' side

    @property
    def start(self) -> int:
        """Sequence number of the first kept event, or of the next one."""
        return self._events[0].sequence if self._events else self.total

    @property
    def dropped(self) -> int:
        """Events that came and are not kept."""
        return self.total - len(self._events)

    def __iter__(self) -> Iterator[LoggedEvent]:
        """What is kept, oldest first."""
        return iter(tuple(self._events))

    def read(self, begin: int) -> list[LoggedEvent]:
        """What is kept from this sequence number on. If the first one has a later number, there is a gap before it."""
        found: list[LoggedEvent] = []
        for logged in reversed(self._events):  # who follows is near the end
            if logged.sequence < begin:
                break
            found.append(logged)
        return found[::-1]

    def refused(self, begin: int = 0) -> tuple[RefusedHost, ...]:
        """The distinct refusals from this sequence number on, the first REFUSED ones."""
        counts: dict[tuple[str | None, str | None, int | None, str | None], int] = {}
        for logged in self.read(begin):
            event = logged.event
            if event.verdict == "refused":
                key = event.name, None if event.name else event.address, event.port, event.reason
                if key in counts or len(counts) < REFUSED:
                    counts[key] = counts.get(key, 0) + 1
        return tuple(RefusedHost(*key, count) for key, count in counts.items())

    async def follow(self, begin: int) -> AsyncIterator[list[LoggedEvent]]:
        """Yields what is kept from a sequence number on, then what comes, until the log is closed."""
        changed = asyncio.Event()
        self._wakers.add(changed.set)
        try:
            while True:
                changed.clear()
                found = self.read(begin)
                if found:
                    begin = found[-1].sequence + 1
                    yield found
                elif self.closed:
                    return
                else:
                    await changed.wait()
        finally:
            self._wakers.discard(changed.set)
