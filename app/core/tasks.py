"""Background work with an owner: the task is held while it runs, and its errors are reported."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from app.core.backend import settle
from app.core.errors import BulkheadError


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
