"""A live service for the drivers: the real one as root, for others the edge over a NullBackend."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from tests import service as real
from tests.unit.api import service as null

KEY = "bh_drivers_key-of-the-drivers"


@contextmanager
def null_service(_: Path) -> Iterator[str]:
    """Its URL. It runs in a thread: the drivers are other programs."""
    loop = asyncio.new_event_loop()
    over = asyncio.Event()
    port: Future[int] = Future()

    async def serve() -> None:
        try:
            digest = hashlib.sha256(KEY.encode()).hexdigest()
            async with null.Service([null.kernel()], key_hashes=(digest,)).served() as live:
                port.set_result(live.port)
                await over.wait()
        except BaseException as error:
            if port.done():
                raise
            port.set_exception(error)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port.result(30)}"
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
        loop.close()


@contextmanager
def real_service(data: Path) -> Iterator[str]:
    with real.Service(data, {"BULKHEAD_API_KEYS": f'["{KEY}"]', **_lenient()}) as running:
        yield running.url


def _lenient() -> dict[str, str]:
    """Isolation is not what these tests are about: an old kernel's missing layers are accepted."""
    found = os.environ.get("BULKHEAD_PROCESS__ACCEPT_MISSING")
    return {"BULKHEAD_PROCESS__ACCEPT_MISSING": found} if found else {}
