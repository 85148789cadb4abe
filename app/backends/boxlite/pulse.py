"""Whether the server is there, asked every two seconds; and what it says about all boxes, in the same answer.

The one place that knows: a create or `GET /readyz` looks here and costs the server nothing, a dead server is asked no
more often than a living one, and no other runtime waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.client import upstream_of
from app.backends.boxlite.server import Box, Server, is_unreachable
from app.core.errors import BackendFailure, BackendUnavailable

INTERVAL_SECONDS = 2.0
ANSWER_SECONDS = 2.5  # with the interval less than the 5 s after which `GET /readyz` must tell the truth


class Pulse:
    """`on_boxes(asked_at, boxes)`: asked_at on the loop's clock. `on_silence(seconds)`: since it last answered."""

    def __init__(
        self, server: Server, on_boxes: Callable[[float, list[Box]], None], on_silence: Callable[[float], None]
    ) -> None:
        self._server, self._on_boxes, self._on_silence = server, on_boxes, on_silence
        self.failure: BackendFailure | None = BackendUnavailable(RUNTIME, "the BoxLite server has not been asked yet")
        self._asked = asyncio.Event()  # at least once
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._answered_at = 0.0

    def open(self) -> None:
        self._answered_at = asyncio.get_running_loop().time()
        self._task = asyncio.get_running_loop().create_task(self._beat())

    async def check(self) -> None:
        """Raises what the last answer was, if it was none."""
        await self._asked.wait()
        if self.failure is not None:
            raise self.failure

    def note(self, error: BackendFailure) -> None:
        """Somebody met this: when it means that the server is gone, everybody learns of it now."""
        if is_unreachable(error) and self.failure is None:
            self.failure = _down(error)
            self._hurry.set()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            asked_at = loop.time()
            try:
                boxes = await self._server.boxes(ANSWER_SECONDS)
            except BackendFailure as error:
                self.failure = _down(error)
                self._on_silence(loop.time() - self._answered_at)
            else:
                self.failure = None
                self._answered_at = loop.time()
                self._on_boxes(asked_at, boxes)
            self._asked.set()
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await self._hurry.wait()
                await asyncio.sleep(INTERVAL_SECONDS / 4)  # many may hurry it at the same time

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


def _down(error: BackendFailure) -> BackendUnavailable:
    """However it does not work, the runtime is not available."""
    return BackendUnavailable(RUNTIME, str(error), math.ceil(INTERVAL_SECONDS), upstream_of(error))
