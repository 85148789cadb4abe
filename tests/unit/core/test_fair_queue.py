from __future__ import annotations

import asyncio

from app.core.fair_queue import EACH_TURN, FairQueue


async def begun(queue: FairQueue, clients: list[str]) -> list[str]:
    """The clients in the order in which their requests began, when all of them asked at once."""
    order: list[str] = []

    async def request(client: str) -> None:
        await queue.enter(client)
        order.append(client)

    await asyncio.gather(*(request(client) for client in clients))
    return order


async def test_client_with_one_request_does_not_wait_for_the_thousand_of_another() -> None:
    order = await begun(FairQueue(), ["a"] * 1000 + ["b"])
    assert len(order) == 1001
    assert order.index("b") <= EACH_TURN + 1


async def test_clients_that_wait_take_turns() -> None:
    order = await begun(FairQueue(1), ["a", "a", "a", "b", "b", "c"])
    assert order == ["a", "a", "b", "c", "a", "b"]


async def test_few_requests_begin_in_one_run_through_the_loop() -> None:
    queue = FairQueue(4)
    runs: list[int] = []
    tasks = [asyncio.create_task(queue.enter("a")) for _ in range(40)]
    while not all(task.done() for task in tasks):
        before = sum(task.done() for task in tasks)
        await asyncio.sleep(0)
        runs.append(sum(task.done() for task in tasks) - before)
    assert max(runs) <= 4


async def test_request_that_was_cancelled_while_it_waited_takes_no_turn() -> None:
    queue = FairQueue(1)
    tasks = [asyncio.create_task(queue.enter(client)) for client in "aab"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [False, True, False]
    await asyncio.wait_for(queue.enter("c"), 60)


async def test_lone_request_never_waits() -> None:
    queue = FairQueue()
    entering = queue.enter("a")
    try:
        entering.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")
