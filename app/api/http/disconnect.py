"""Notices that a client has disconnected before it has its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnected(OSError):
    """The client disconnected, so there is nobody to answer. It is an OSError, as servers raise one from `send` for
    this (ASGI)."""


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """Returns the result of `work`. When the client disconnects first, or at the same time, `work` is cancelled and
    ClientDisconnected is raised. `work` runs in the caller's task, as a second task would cost every request 20 µs."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    over = hung_up = False

    def notice(listener: asyncio.Task[None]) -> None:
        nonlocal hung_up
        if task is not None and not over and not listener.cancelled():
            hung_up = True
            task.cancel()

    listener = loop.create_task(_disconnect(receive))
    listener.add_done_callback(notice)
    try:
        result = await work
        await asyncio.sleep(0)  # what happened in the same turn of the loop counts as at once
    except asyncio.CancelledError:
        if task is not None and hung_up and task.uncancel() == 0:
            raise ClientDisconnected from None
        raise
    finally:
        over = True
        listener.cancel()
    if listener.done():
        raise ClientDisconnected
    return result
