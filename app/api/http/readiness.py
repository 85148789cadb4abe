"""Whether each runtime works. A runtime is asked at most once a second, however many clients want to know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.core.backend import Backend, RuntimeInfo
from app.core.errors import BackendFailure, BackendUnavailable, BulkheadError, RuntimeNotEnabled
from app.core.models import Storage
from app.core.registry import Registry
from app.core.storage import lacks_default

FRESH_SECONDS = 1.0
ANSWER_SECONDS = 5.0


class Readiness:
    def __init__(
        self,
        registry: Registry,
        noted: Callable[[str, BulkheadError | None, BulkheadError | None], None],
        *,
        storage: Storage = Storage.MEMORY,
        answer_seconds: float = ANSWER_SECONDS,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        """`storage` is the operator's default. `noted` is told the name of a runtime, why it does not work, and what it
        cannot do although it works."""
        self._registry = registry
        self._noted = noted
        self._storage = storage
        self._answer_seconds = answer_seconds
        self._fresh_seconds = fresh_seconds
        self._known: dict[str, tuple[float, asyncio.Task[BulkheadError | None]]] = {}

    async def of(self, backend: Backend) -> BulkheadError | None:
        """None when the runtime works, else the BackendFailure that says why not. Raises RuntimeNotEnabled when it is
        switched off."""
        name = backend.info.name
        if not self._registry.enabled(name):
            return RuntimeNotEnabled(name, [b.info.name for b in self._registry])
        loop = asyncio.get_running_loop()
        asked, answer = self._known.get(name, (0.0, None))
        if answer is None or (answer.done() and loop.time() - asked >= self._fresh_seconds):
            answer = loop.create_task(self._ask(backend))
            self._known[name] = (loop.time(), answer)
        return await asyncio.shield(answer)

    async def _ask(self, backend: Backend) -> BulkheadError | None:
        name = backend.info.name
        error: BulkheadError | None = None
        try:
            async with asyncio.timeout(self._answer_seconds):
                await backend.ready()
        except TimeoutError:
            error = BackendUnavailable(name, f"the runtime did not answer within {self._answer_seconds:g} seconds")
        except BackendFailure as found:
            error = found
        self._noted(name, error, lacks_default(self._storage, backend.info) or limitation_of(backend.info))
        return error

    async def all(self) -> dict[str, BulkheadError | None]:
        backends = list(self._registry)
        answers = await asyncio.gather(*(self.of(backend) for backend in backends))
        return {backend.info.name: answer for backend, answer in zip(backends, answers, strict=True)}

    async def note_all(self) -> None:
        """Asks all that are switched on, and has it noted. The answers are not kept: who asks next gets new ones."""
        await asyncio.gather(*(self._ask(b) for b in self._registry if self._registry.enabled(b.info.name)))

    async def for_defaults(self) -> dict[str, BulkheadError | None]:
        """As `all`, for requests that do not name their storage."""
        answers = await self.all()
        return {b.info.name: answers[b.info.name] or lacks_default(self._storage, b.info) for b in self._registry}


def limitation_of(runtime: RuntimeInfo) -> BackendUnavailable | None:
    return BackendUnavailable(runtime.name, runtime.limitation) if runtime.limitation else None
