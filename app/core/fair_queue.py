"""Lets clients take turns. Requests begin in turn, so a client with a thousand of them delays another client by a few.
Pieces of output and of large answers go out in turn too."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

# A request takes 1 to 2 ms of processor time until it first waits for something.
EACH_TURN = 4


class FairQueue:
    """At most `each_turn` requests begin in one run through the event loop. Clients that wait take turns, and the
    requests of one client keep their order."""

    def __init__(self, each_turn: int = EACH_TURN) -> None:
        self._each_turn = self._left = each_turn
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # whose turn it is stands first
        self._is_scheduled = False

    async def enter(self, client: Hashable) -> None:
        """Returns when a request of the client may begin."""
        if self._left and not self._waiting:
            self._left -= 1
            self._schedule()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._schedule()
        await turn

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_scheduled = False
        self._left = self._each_turn
        while self._left and self._waiting:
            client = next(iter(self._waiting))
            turns = self._waiting.pop(client)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # behind the others
            if not turn.done():  # else it was cancelled
                turn.set_result(None)
                self._left -= 1
        if self._left < self._each_turn:
            self._schedule()
