"""Background work with an owner: the task is held while it runs, and its errors are reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from app.core.backend import settle
from app.core.errors import BulkheadError

T = TypeVar("T")


def hand_over(
    work: Coroutine[Any, Any, T],
    result: asyncio.Future[T],
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
) -> asyncio.Task[None]:
    """Starts a task whose caller waits for `result` and may be cancelled: the work goes on, and its error is raised in
    the task then. `asyncio.shield` does the same, but its caller goes on two turns of the loop later."""
    task = spawn(_hand_over(work, result))

    def end(_: asyncio.Task[None]) -> None:
        work.close()  # nothing ran of a task that was cancelled before its first step
        result.cancel()

    task.add_done_callback(end)
    return task


async def _hand_over(work: Coroutine[Any, Any, T], result: asyncio.Future[T]) -> None:
    try:
        value = await work
    except Exception as error:  # whatever it is, the caller gets it
        if result.done():
            raise
        result.set_exception(error)
        result.exception()  # counts as read, as the caller may be cancelled before it looks
    else:
        if not result.done():
            result.set_result(value)


class Tasks:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, BulkheadError):
            task.get_loop().call_exception_handler(
                {"message": "a background task failed", "exception": error, "task": task}
            )

    async def settled(self) -> None:
        """Waits for the tasks that run now. When it is cancelled, it cancels them."""
        if not self._tasks:
            return
        try:
            await asyncio.wait(tuple(self._tasks))
        except asyncio.CancelledError:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Cancels all tasks, and those that they start in turn, and waits for them."""
        while self._tasks:
            for task in tuple(self._tasks):
                task.cancel()
                await settle(task)
            await asyncio.sleep(0)  # what has just ended is taken out by a callback
