"""Exact output against the real server: nothing is lost although the reader stalls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from app.backends.boxlite.backend import BoxliteBackend
from app.core.models import OutputMode
from app.settings.boxlite import BoxliteSettings
from tests.boxlite.machine import Machine
from tests.boxlite.rig import INSTANCE, SPEC, Run, start, until

SIZE = 5_000_000  # of each channel: 0.3 MB/s are carried where the processor is emulated
STALL_SECONDS = 30


class Proxy:
    """Between the gateway and the server: passes bytes on, and stops when it is told to."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._to = host, int(port)
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(*self._to)
        for source, target, held in ((reader, to_server, False), (from_server, writer, True)):
            self._tasks.add(asyncio.create_task(self._pass_on(source, target, held=held)))

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, held: bool) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(16 * 1024):
                    if held:
                        await self.go_on.wait()
                    target.write(data)
                    await target.drain()
        finally:  # it may be cancelled at any of these
            target.close()
            with contextlib.suppress(ConnectionError):
                await target.wait_closed()


async def test_nothing_is_lost_on_either_channel_although_the_reader_stalls(machine: Machine) -> None:
    """The program prints as fast as it can, random bytes; plain output loses most of that: `attach_stalled_reader` of
    the recordings. The server closes a socket on which it cannot write for 20 s."""
    proxy = Proxy(machine.url)
    async with proxy.serving() as url:
        backend = BoxliteBackend(
            BoxliteSettings.model_validate(
                {
                    "url": url,
                    "api_key": machine.key,
                    "images": {"busybox": {"rootfs_path": "/images/busybox"}},
                    "default_image": "busybox",
                }
            ),
            INSTANCE,
        )
        backend.open()
        try:
            await backend.ready()
            spec = replace(SPEC, limits=replace(SPEC.limits, memory_mib=128))
            async with asyncio.timeout(250):
                sandbox = await backend.create("sbx_1", backend.fit(spec))
            assert sandbox.receipt["output_mode"] == OutputMode.EXACT
            made = await start(sandbox, "sh", "-c", f"head -c {SIZE} /dev/urandom >/tmp/a; sha256sum </tmp/a")
            digest = (await _ended(made)).split()[0].decode()
            both = "cat /tmp/a & cat /tmp/a >&2; wait"
            run = await start(sandbox, "sh", "-c", both, execution_id="exe_2", timeout_seconds=300)
            await until(lambda: run.logs.stdout.total > 200_000)
            proxy.go_on.clear()
            await asyncio.sleep(STALL_SECONDS)  # the time for which the reader stalls is what is tested
            proxy.go_on.set()
            async with asyncio.timeout(250):
                end = await run.handle.wait()
            assert (end.code, end.detail) == (0, None)
            assert (run.logs.stdout.sha256, run.logs.stderr.sha256) == (digest, digest)
            assert (run.logs.stdout.dropped, run.logs.stdout.gaps, run.logs.stderr.gaps) == (0, [], [])
        finally:
            await backend.aclose()


async def _ended(run: Run) -> bytes:
    async with asyncio.timeout(250):
        assert (await run.handle.wait()).code == 0
    return run.out
