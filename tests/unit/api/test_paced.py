"""Large answers in memory have one bound, and each client its part of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from starlette.types import Message

from app.api.http.paced import PIECE, Paced
from app.core.budget import Budget
from app.core.errors import Refused
from app.core.fair_queue import FairQueue


def start(length: int) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % length)]}


class Client:
    """Takes an answer once `taking` is set."""

    def __init__(self, budget: Budget, name: str) -> None:
        self.got: list[Message] = []
        self.refused: list[Refused] = []
        self.taking = asyncio.Event()
        self.paced = Paced(self.take, budget, name, self.refuse, FairQueue())

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            await self.taking.wait()
        self.got.append(message)

    async def refuse(self, error: Refused) -> None:
        self.refused.append(error)

    async def ask(self, size: int) -> None:
        await self.paced.send(start(size))
        await self.paced.send({"type": "http.response.body", "body": bytes(size)})

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.got[1:])


async def test_answers_that_nobody_takes_count_and_others_go_on() -> None:
    budget = Budget("bytes", 40 * PIECE, "client")
    greedy = [Client(budget, "a") for _ in range(2)]
    waiting = [asyncio.create_task(client.ask(10 * PIECE)) for client in greedy]
    await asyncio.sleep(0)
    refused, other = Client(budget, "a"), Client(budget, "b")
    await refused.ask(10 * PIECE)
    assert (len(refused.refused), refused.got) == (1, [])
    other.taking.set()
    await other.ask(10 * PIECE)
    assert len(other.body) == 10 * PIECE
    for task in waiting:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert budget.used == 0


async def test_a_large_answer_goes_out_in_pieces_and_whole() -> None:
    client = Client(Budget("bytes", 100 * PIECE, "client"), "a")
    client.taking.set()
    await client.ask(3 * PIECE + 1)
    assert [len(message["body"]) for message in client.got[1:]] == [PIECE, PIECE, PIECE, 1]
    assert [message["more_body"] for message in client.got[1:]] == [True, True, True, False]


@pytest.mark.parametrize("size", [0, 1, PIECE])
async def test_a_small_answer_is_sent_as_it_is(size: int) -> None:
    client = Client(Budget("bytes", 1, "client"), "a")
    client.taking.set()
    await client.ask(size)
    assert [message.get("more_body") for message in client.got[1:]] == [None]


async def test_what_is_not_in_memory_as_a_whole_counts_for_nothing() -> None:
    budget = Budget("bytes", 1, "client")
    client = Client(budget, "a")
    client.taking.set()
    await client.paced.send(start(10 * PIECE))
    await client.paced.send({"type": "http.response.body", "body": bytes(PIECE), "more_body": True})
    assert (len(client.got), budget.used) == (2, 0)
