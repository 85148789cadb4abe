"""Makes a client from the environment. It imports everything heavy, and only when a service is to be asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

# httpx's own command line would load rich and pygments, 30 ms; its absence is a case that httpx knows.
sys.modules.setdefault("httpx._main", cast(Any, None))

from app.client import Client, ClientError  # noqa: E402 - after the line above

__all__ = ["ClientError", "connected"]


async def connected(work: Callable[[Client], Awaitable[int]]) -> int:
    async with Client.from_environment(os.environ) as client:
        return await work(client)
