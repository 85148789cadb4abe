"""A connection that asyncio accepts while its server closes is closed too.

CPython leaves it to the collector (gh-109564, not fixed yet). That warns of a transport that nobody closed, in
whichever test it runs: 1 of 320 failed on a machine with four times as many tests as processors.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable, Coroutine
from typing import Any

_Accept = Callable[..., Coroutine[Any, Any, None]]


def close_late_connections() -> None:
    """For all loops of asyncio, from now on."""
    BaseSelectorEventLoop._accept_connection2 = _closing(BaseSelectorEventLoop._accept_connection2)  # type: ignore[attr-defined]


def _closing(accept: _Accept) -> _Accept:
    async def checked(
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        connection: socket.socket,
        extra: dict[str, Any],
        sslcontext: Any = None,
        server: Any = None,
        *more: Any,
        **named: Any,
    ) -> None:
        if server is not None and server._sockets is None:
            connection.close()
            return
        await accept(loop, protocol_factory, connection, extra, sslcontext, server, *more, **named)

    return checked
