from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.api.http.disconnect import ClientDisconnected, until_disconnect


class Client:
    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.listening = 0

    async def receive(self) -> dict[str, Any]:
        self.listening += 1
        try:
            await self.left.wait()
        finally:
            self.listening -= 1
        return {"type": "http.disconnect"}


async def nothing() -> str:
    return "done"


async def test_the_result_comes_when_the_client_stays() -> None:
    client = Client()
    assert await until_disconnect(client.receive, nothing()) == "done"
    await asyncio.sleep(0)
    assert client.listening == 0


async def test_the_work_is_cancelled_when_the_client_leaves() -> None:
    client, cancelled = Client(), asyncio.Event()

    async def work() -> None:
        client.left.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(ClientDisconnected):
        await until_disconnect(client.receive, work())
    assert cancelled.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_client_that_leaves_as_the_work_ends_is_gone() -> None:
    client = Client()

    async def work() -> None:
        await asyncio.sleep(0)  # let the listener begin
        client.left.set()

    with pytest.raises(ClientDisconnected):
        await until_disconnect(client.receive, work())
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # a late callback would cancel us here


async def test_an_error_of_the_work_passes() -> None:
    async def work() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await until_disconnect(Client().receive, work())


async def test_our_own_cancellation_is_not_taken_for_a_disconnect() -> None:
    client = Client()
    task = asyncio.ensure_future(until_disconnect(client.receive, asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert client.listening == 0
