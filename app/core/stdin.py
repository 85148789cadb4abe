"""Decides which client feeds an execution's stdin."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.core.executions import Execution


class StdinLease:
    """The right to feed one execution's stdin. One client has it at a time, and another may take it over."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self.taken_over = asyncio.Event()

    async def write(self, data: bytes) -> None:
        """Raises WrongState after the end of stdin, of the execution or of this lease."""
        await self._execution.feed(data, self)

    async def close(self) -> None:
        """Raises WrongState as `write` does."""
        await self._execution.end_stdin(self)

    def release(self) -> None:
        self._execution.release_stdin(self)
