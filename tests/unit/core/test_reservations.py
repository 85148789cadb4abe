"""Room in a budget is waited for: by turns of the clients, and nothing stays taken whatever happens to who waits."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from app.core.budget import Budget
from app.core.errors import BoundExceeded
from app.core.reservations import BudgetQueue, Reservation


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("client", ["", "a"], ids=["without keys", "with a key"])
async def test_who_waits_gets_room_in_the_order_of_coming(client: str) -> None:
    budget = Budget("bytes", 10, "client", shared=False)
    queue, order = BudgetQueue(budget), list[int]()

    async def ask(number: int, count: int) -> None:
        await queue.take(client, count)
        order.append(number)

    budget.take(client, 10)
    tasks = [asyncio.create_task(ask(number, count)) for number, count in enumerate((8, 2, 5))]
    await turns()
    budget.give_back(client, 5)
    await turns()
    assert order == [], "the second fits, and does not overtake the first"
    budget.give_back(client, 5)
    await turns()
    assert (order, budget.used) == ([0, 1], 10)
    budget.give_back(client, 8)
    await asyncio.gather(*tasks)
    assert (order, budget.used) == ([0, 1, 2], 7)


async def test_a_client_at_its_share_delays_no_other() -> None:
    budget = Budget("bytes", 100, "client")
    queue = BudgetQueue(budget)
    await queue.take("slow", 50)
    waiting = [asyncio.create_task(queue.take("slow", 40)) for _ in range(20)]
    await turns()
    await asyncio.wait_for(queue.take("other", 25), 60)
    assert (budget.held("slow"), budget.held("other")) == (50, 25)
    for task in waiting:
        await cancelled(task)


async def test_clients_that_wait_take_turns() -> None:
    budget = Budget("bytes", 10, "client")
    queue, order = BudgetQueue(budget), list[str]()

    async def ask(client: str) -> None:
        await queue.take(client, 2)
        order.append(client)
        budget.give_back(client, 2)

    budget.take("x", 5)
    budget.take("y", 2)
    budget.take("z", 2)
    tasks = [asyncio.create_task(ask(client)) for client in ("a", "a", "a", "b")]
    await turns()
    assert order == []
    budget.give_back("x", 5)
    await asyncio.gather(*tasks)
    assert order.index("b") == 1


async def test_who_leaves_while_it_waits_holds_nothing_and_lets_the_next_go_on() -> None:
    budget = Budget("bytes", 10, "client", shared=False)
    queue = BudgetQueue(budget)
    budget.take("a", 5)
    large = asyncio.create_task(queue.take("a", 10))
    small = asyncio.create_task(queue.take("a", 5))
    await turns()
    await cancelled(large)
    await small
    assert budget.used == 10


async def test_room_that_comes_with_the_cancellation_is_given_back() -> None:
    budget = Budget("bytes", 10, "client", shared=False)
    queue = BudgetQueue(budget)
    budget.take("a", 10)
    waiting = asyncio.create_task(queue.take("a", 10))
    await turns()
    budget.give_back("a", 10)  # grants it
    assert budget.used == 10
    await cancelled(waiting)
    assert budget.used == 0


async def test_what_can_never_fit_is_refused_and_not_waited_for() -> None:
    queue = BudgetQueue(Budget("bytes", 10, "client"))
    with pytest.raises(BoundExceeded):
        await queue.take("a", 6)


async def test_a_reservation_gives_back_its_surplus_and_the_rest_after_an_error() -> None:
    budget = Budget("bytes", 10, "client", shared=False)
    reservation = Reservation(BudgetQueue(budget), "a")
    with pytest.raises(OSError), reservation:
        await reservation.take(8)
        reservation.shrink(3)
        reservation.shrink(5)
        assert budget.used == 3
        raise OSError
    assert budget.used == 0
    reservation.close()
    assert budget.used == 0
