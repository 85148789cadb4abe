"""Operations of clients on a sandbox's files. An operation keeps the sandbox from being idle, and ends with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from app.core.budget import Budget
from app.core.capabilities import Capability
from app.core.errors import UnsupportedByRuntime
from app.core.files import Files
from app.core.records import Records
from app.core.registry import Registry
from app.core.resources import Capacity
from app.core.sandbox import WAIT_SECONDS

T = TypeVar("T")


class Transfers:
    def __init__(self, registry: Registry, capacity: Capacity, records: Records) -> None:
        self._registry = registry
        self._records = records
        self._running = Budget("operations on files at one time", capacity.transfers, "sandbox")
        self._unpacking = Budget("archives that are unpacked at one time", capacity.archives, "sandbox")

    @asynccontextmanager
    async def unpacking(self, sandbox_id: str) -> AsyncIterator[Files]:
        """Like `files`, for an archive. Its names are remembered until its end (app/core/archive.py), up to some 30
        MiB."""
        with self._unpacking.holding(sandbox_id):
            async with self.files(sandbox_id) as files:
                yield files

    @asynccontextmanager
    async def files(self, sandbox_id: str) -> AsyncIterator[Files]:
        """A block with the files of a sandbox, for one operation in this task. Waits for a sandbox that is `creating`.
        Raises NotFound, UnsupportedByRuntime, WrongState, CapacityExceeded. When the sandbox ends first, the block is
        cancelled at once, and WrongState is raised.
        """
        sandbox = self._records.get(sandbox_id)
        sandbox.touch()
        runtime = self._registry.get(sandbox.spec.runtime).info
        if Capability.FILES not in runtime.capabilities:
            raise UnsupportedByRuntime(Capability.FILES, runtime.name)
        await sandbox.wait(WAIT_SECONDS)
        sandbox.check_running()
        with self._running.holding(sandbox_id):
            async with sandbox.transferring() as handle:
                yield handle.files


@asynccontextmanager
async def closing(pieces: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Closes a generator that is not read to its end here, and not when the garbage collector finds it."""
    try:
        yield pieces
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
