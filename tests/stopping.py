"""A coroutine that can be stopped where it is, as the kernel freezes a process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class Ice:
    """What holds the coroutines of one room: `frozen` until it is thawed."""

    def __init__(self) -> None:
        self._thawed = asyncio.Event()
        self._thawed.set()

    @property
    def frozen(self) -> bool:
        return not self._thawed.is_set()

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    async def stoppable(self, coroutine: Coroutine[Any, Any, int]) -> int:
        """Runs it; while the ice is frozen it does not get a turn, unless it is cancelled."""
        return await _Steps(self, coroutine)

    async def wait(self) -> None:
        await self._thawed.wait()


class _Steps:
    def __init__(self, ice: Ice, coroutine: Coroutine[Any, Any, int]) -> None:
        self._ice, self._coroutine = ice, coroutine

    def __await__(self) -> Generator[Any, Any, int]:
        error: BaseException | None = None
        while True:
            try:
                while error is None and self._ice.frozen:
                    yield from self._ice.wait().__await__()
            except asyncio.CancelledError as cancelled:
                error = cancelled
            try:
                waited_for = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as ended:
                return int(ended.value)
            error = None
            try:
                yield waited_for
            except BaseException as thrown:  # it is the coroutine's, which handles or raises it
                error = thrown
