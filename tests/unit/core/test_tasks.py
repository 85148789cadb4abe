from __future__ import annotations

import asyncio

import pytest

from app.core.errors import BackendFailure
from app.core.tasks import Tasks, hand_over


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def fail() -> int:
    await asyncio.sleep(0)
    raise BackendFailure("it is gone")


async def test_whoever_waits_for_work_that_is_handed_over_gets_its_result_or_its_error() -> None:
    result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    work = hand_over(answer(5), result, asyncio.create_task)
    assert await result == 5
    await work
    result = asyncio.get_running_loop().create_future()
    work = hand_over(fail(), result, asyncio.create_task)
    with pytest.raises(BackendFailure, match="it is gone"):
        await result
    await work


async def test_work_that_is_handed_over_goes_on_when_its_caller_is_cancelled() -> None:
    result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    go_on, done = asyncio.Event(), asyncio.Event()

    async def long_work() -> int:
        await go_on.wait()
        done.set()
        return 5

    work = hand_over(long_work(), result, asyncio.create_task)
    await asyncio.sleep(0)
    result.cancel()
    go_on.set()
    await work
    assert done.is_set() and result.cancelled()


async def test_an_error_of_work_whose_caller_was_cancelled_is_reported_by_its_task() -> None:
    reported: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    tasks = Tasks()

    async def break_() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    result: asyncio.Future[None] = loop.create_future()
    work = hand_over(break_(), result, tasks.spawn)
    result.cancel()
    await asyncio.wait([work])
    await asyncio.sleep(0)
    assert [type(error) for error in reported] == [ZeroDivisionError] and not len(tasks)


@pytest.mark.parametrize("steps", [0, 1])
async def test_the_caller_of_work_that_is_cancelled_is_cancelled_too(steps: int) -> None:
    """Also before the first step of the work, of which nothing runs then."""
    result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    work = hand_over(answer(5), result, asyncio.create_task)
    for _ in range(steps):
        await asyncio.sleep(0)
    work.cancel()
    async with asyncio.timeout(60):
        with pytest.raises(asyncio.CancelledError):
            await result
    await asyncio.wait([work])
    assert work.cancelled()
