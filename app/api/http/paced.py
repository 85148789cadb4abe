"""Large answers that are in memory. They go out piece by piece, and all of them together have one bound."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

from starlette.types import Message, Send

from app.core.budget import Budget
from app.core.errors import Refused
from app.core.fair_queue import FairQueue

PIECE = 128 * 1024
COUNTED = "bulkhead.counted"  # a key of the message that starts an answer


class Paced:
    """`send` for one answer. A body above 128 KiB counts for its holder until its last piece was sent. A piece is sent
    when the client has taken most of the piece before it, in turn with those of others (`turns`). When there is no
    room, `refuse` answers instead, as nothing was sent yet. An answer whose start says COUNTED holds its room
    already."""

    def __init__(
        self,
        send: Send,
        budget: Budget,
        holder: Hashable,
        refuse: Callable[[Refused], Awaitable[None]],
        turns: FairQueue,
    ) -> None:
        self._turns = turns
        self._send, self._budget, self._holder, self._refuse = send, budget, holder, refuse
        self._start: Message | None = None
        self._refused = False

    async def send(self, message: Message) -> None:
        if self._refused:
            return
        if message["type"] == "http.response.start" and _is_large(message):
            self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        start, self._start = self._start, None
        body: bytes = message.get("body", b"")
        if message.get("more_body") or len(body) <= PIECE:  # not in memory as a whole
            await self._send(start)
            await self._send(message)
            return
        await self._whole(start, body)

    async def _whole(self, start: Message, body: bytes) -> None:
        count = 0 if start.get(COUNTED) else len(body)
        try:
            self._budget.take(self._holder, count)
        except Refused as error:
            self._refused = True
            await self._refuse(error)
            return
        try:
            await self._send(start)
            for at in range(0, len(body), PIECE):
                await self._turns.enter(self._holder)
                more = at + PIECE < len(body)
                await self._send({"type": "http.response.body", "body": body[at : at + PIECE], "more_body": more})
        finally:
            self._budget.give_back(self._holder, count)


def _is_large(start: Message) -> bool:
    return any(name.lower() == b"content-length" and int(value) > PIECE for name, value in start.get("headers", ()))
