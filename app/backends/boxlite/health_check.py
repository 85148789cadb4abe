"""The health check: asks the server every one and a half seconds whether it is there. The answer also lists all boxes.

Only this module asks. A create or `GET /readyz` looks here and costs the server nothing, a dead server is asked no more
often than a living one, and no other runtime waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.box import Box
from app.backends.boxlite.client import Unreachable, upstream_of
from app.backends.boxlite.server import BoxliteServer, is_silent
from app.core.errors import BackendFailure, BackendUnavailable


class HealthCheck:
    """Calls `on_boxes(asked_at, boxes)` after each answer, with the loop's time of the request, and
    `on_silence(seconds, error)` with the time since the last answer."""

    def __init__(
        self,
        server: BoxliteServer,
        on_boxes: Callable[[float, list[Box]], None],
        on_silence: Callable[[float, BackendFailure], None],
    ) -> None:
        self._server, self._on_boxes, self._on_silence = server, on_boxes, on_silence
        self._failure: BackendFailure | None = BackendUnavailable(RUNTIME, "the BoxLite server has not been asked yet")
        self._asked = asyncio.Event()  # at least once
        self._there = asyncio.Event()  # while there is no failure
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._answered_at = 0.0

    def open(self) -> None:
        self._answered_at = asyncio.get_running_loop().time()
        self._task = asyncio.get_running_loop().create_task(self._beat())

    async def check(self) -> None:
        """Raises the last error if the server did not answer the last time."""
        await self._asked.wait()
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    async def there(self) -> None:
        """Returns when the server answers. Retries wait here, so that nothing else asks a dead server."""
        await self._there.wait()

    def note(self, error: BackendFailure) -> None:
        """Takes note of an error of another request. If there is no connection, this holds for all at once. If one
        answer did not come, one box may be the reason, so the server is asked again."""
        if isinstance(error, Unreachable) and self._failure is None:
            self._set(error)
        if is_silent(error) or upstream_of(error).status == 401:
            self.hurry()

    def hurry(self) -> None:
        self._hurry.set()

    def _set(self, failure: BackendFailure | None) -> None:
        """However the server does not work, the runtime is unavailable: a 503, never a 502 or 504."""
        if failure is None:
            self._failure = None
            self._there.set()
        else:
            retry = math.ceil(self._server.timeouts.health_interval)
            self._failure = BackendUnavailable(RUNTIME, str(failure), retry, upstream_of(failure))
            self._there.clear()

    async def _beat(self) -> None:
        loop, timeouts = asyncio.get_running_loop(), self._server.timeouts
        while True:
            asked_at = loop.time()
            self._hurry.clear()
            try:
                boxes = await self._server.boxes()
                self._set(None)
                self._answered_at = loop.time()
                self._on_boxes(asked_at, boxes)
            except BackendFailure as error:
                self._set(error)
                self._on_silence(loop.time() - self._answered_at, error)
            except (
                Exception
            ) as error:  # a fault of ours must not end the health check, nor leave its last word for true
                self._set(BackendUnavailable(RUNTIME, f"the runtime failed: {type(error).__name__}"))
                loop.call_exception_handler({"message": "the health check of boxlite failed", "exception": error})
            self._asked.set()
            await asyncio.sleep(timeouts.health_interval / 4)  # many may hurry it at the same time
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeouts.health_interval * 3 / 4):
                    await self._hurry.wait()

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
