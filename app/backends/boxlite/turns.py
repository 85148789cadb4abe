"""How many requests about one box there may be at one time. A guest that hangs lets each request hang for up to 30
seconds, and its owner may send any number. Without a bound it would take all connections, and everybody else would
wait."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from app.backends.boxlite import RUNTIME
from app.core.errors import BackendUnavailable

AT_ONCE = 8  # requests about one box, of each kind
ASKS = 32  # signals and resizes of one box, from the request of the client to its answer


class TooManyPending(BackendUnavailable):
    """Too many requests wait already. Nothing was sent, and this says nothing about the server."""

    def __init__(self, detail: str = "too many requests wait for this box or its server already") -> None:
        super().__init__(RUNTIME, detail)


class Turns:
    """The turns of all boxes. A request waits only for requests of its own kind, so a kill never waits behind a
    start."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Semaphore] = WeakValueDictionary()

    def of(self, box_id: str, kind: str) -> asyncio.Semaphore:
        """The turns of one box, kept while they are in use."""
        return self._turns.setdefault((box_id, kind), asyncio.Semaphore(AT_ONCE))


async def take(turns: asyncio.Semaphore, seconds: float) -> None:
    """Raises TooManyPending."""
    if not turns.locked():  # it does not wait, and needs no timer
        await turns.acquire()
        return
    try:
        async with asyncio.timeout(seconds):
            await turns.acquire()
    except TimeoutError:
        raise TooManyPending from None


class PendingLimit:
    """How many requests of a kind may wait. A disconnect does not end a request, so one too many is refused."""

    def __init__(self) -> None:
        self._under_way = 0

    def __enter__(self) -> None:
        if self._under_way >= ASKS:
            raise TooManyPending
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
