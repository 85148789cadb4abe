"""Many viewers, and many large answers, take turns; one that is alone does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from starlette.types import Message

from app.api.context import PIECES_EACH_TURN
from app.api.http.paced import PIECE, Paced
from app.api.streams.viewing import View
from app.core.budget import Budget
from app.core.errors import Refused
from app.core.executions import Execution
from app.core.fair_queue import FairQueue
from app.core.follow import OutputGap, OutputPiece
from app.core.models import Channel
from tests.unit.api.service import Service


class Stored:
    """An execution, and a follower of it, that has so many pieces stored."""

    def __init__(self, pieces: int, client: str) -> None:
        self._left, self._client = pieces, client

    @contextmanager
    def follow(self, _: object) -> Iterator[Stored]:
        yield self

    def poll(self) -> OutputPiece | None:
        self._left -= 1
        return OutputPiece(Channel.STDOUT, 0, self._client.encode()) if self._left >= 0 else None

    async def next(self) -> None:
        return None


class Sent:
    """The encoding of a viewer who takes everything at once."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    async def start(self, *_: object) -> None: ...
    async def exit(self, *_: object) -> None: ...
    async def gap(self, gap: OutputGap) -> None: ...

    async def output(self, item: OutputPiece) -> None:
        self.pieces.append(item.data.decode())


async def pieces_of_each_run(sent: Sent, *work: Awaitable[None]) -> list[int]:
    """How many pieces went out in each run through the loop, until all work is done."""
    loop, runs, is_done = asyncio.get_running_loop(), [], False

    def beat(before: int) -> None:
        runs.append(len(sent.pieces) - before)
        if not is_done:
            loop.call_soon(beat, len(sent.pieces))

    loop.call_soon(beat, 0)
    await asyncio.gather(*work)
    is_done = True
    return runs


def views(count: int, pieces: int, sent: Sent, turns: FairQueue, client: str = "a") -> list[Awaitable[None]]:
    def told(_: int) -> None: ...

    def view() -> View:
        return View(cast(Execution, Stored(pieces, client)), {}, told, client, turns)

    return [view().send_to(cast(Any, sent)) for _ in range(count)]


def answers(count: int, pieces: int, sent: Sent, turns: FairQueue) -> list[Awaitable[None]]:
    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.pieces.append("a")

    async def refuse(error: Refused) -> None:
        raise error

    async def answer(budget: Budget) -> None:
        paced = Paced(send, budget, "a", refuse, turns)
        headers = [(b"content-length", b"%d" % (pieces * PIECE))]
        await paced.send({"type": "http.response.start", "status": 200, "headers": headers})
        await paced.send({"type": "http.response.body", "body": bytes(pieces * PIECE)})

    budget = Budget("bytes", 10 * count * pieces * PIECE, "client")
    return [answer(budget) for _ in range(count)]


async def test_many_viewers_and_large_answers_send_few_pieces_in_each_run_through_the_loop() -> None:
    sent, turns = Sent(), FairQueue(PIECES_EACH_TURN)
    runs = await pieces_of_each_run(sent, *views(200, 8, sent, turns), *answers(20, 5, sent, turns))
    assert sum(runs) == len(sent.pieces) == 1700
    assert max(runs) <= PIECES_EACH_TURN


async def test_viewers_of_one_client_do_not_hold_up_the_viewer_of_another() -> None:
    sent, turns = Sent(), FairQueue(PIECES_EACH_TURN)
    await asyncio.gather(*views(200, 8, sent, turns), *views(1, 8, sent, turns, "b"))
    last = max(at for at, client in enumerate(sent.pieces) if client == "b")
    assert last < 10 * PIECES_EACH_TURN, "of 1,608"


async def test_viewer_that_is_alone_does_not_wait_before_each_piece() -> None:
    sent, turns = Sent(), FairQueue(PIECES_EACH_TURN)
    runs = await pieces_of_each_run(sent, *views(1, 1600, sent, turns))
    assert len(sent.pieces) == 1600
    assert len(runs) < 3 * 1600 / PIECES_EACH_TURN


async def test_viewers_and_answers_of_the_service_share_their_turns() -> None:
    """The service hands both the same turns."""
    service = Service()
    entered: list[object] = []
    turns = service.app.state.context.shares.pieces
    enter = turns.enter

    async def noted(client: object) -> None:
        entered.append(client)
        await enter(client)

    turns.enter = noted
    async with service.served() as live:
        path = await live.start("print", "200000")
        answer = await live.client.get(f"{path}/stream", headers={"accept": "text/event-stream"})
        viewed = len(entered)
        assert viewed >= answer.text.count("event: output") > 0
        await live.client.get(f"{path}/output?channel=stdout")
        assert len(entered) == viewed + 2, "200,000 bytes are two pieces"
