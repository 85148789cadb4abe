"""The command, the real service and a runtime without a kernel: what each believes of the others is true."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.core.sandboxes import Capacity, Sandboxes
from app.main import create_app
from app.settings import load_settings
from app.spill import SpillFolder
from app.telemetry import Telemetry
from tests.null_backend import pattern
from tests.unit.api.service import Service
from tests.unit.cli.screen import screen
from tests.unit.cli.typed import begin, bulkhead


class CuttingProxy:
    """Forwards TCP. A WebSocket's first `cuts` connections are cut after so many bytes to the client."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self.cuts = cuts
        self.done = 0
        self._port = port
        self._kept: list[asyncio.Task[None] | None] = []  # asyncio's server forgets a handler whose client is gone

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._kept.append(asyncio.current_task())
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = await reader.readuntil(b"\r\n\r\n")
        allowance: int | None = None
        if b"upgrade: websocket" in head.lower() and self.done < len(self.cuts):
            allowance = self.cuts[self.done]
            self.done += 1
        up_writer.write(head)
        try:
            async with asyncio.TaskGroup() as group:
                up = group.create_task(self._copy(reader, up_writer, None))
                await self._copy(up_reader, writer, allowance)
                up.cancel()
        finally:
            for end in (writer, up_writer):
                end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowance: int | None) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data if allowance is None else data[:allowance])
                await writer.drain()
                if allowance is not None and (allowance := allowance - len(data)) <= 0:
                    return
        except ConnectionError:
            return


@asynccontextmanager
async def cutting(port: int, *cuts: int) -> AsyncIterator[tuple[str, CuttingProxy]]:
    proxy = CuttingProxy(port, list(cuts))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", proxy
    finally:
        server.close()


class Spilling(Service):
    """With a spill folder, as the real service has: without one only the last 256 KiB of a channel are kept."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        spill = SpillFolder(Path(folder), 512 * 1024 * 1024)
        self.telemetry = Telemetry(stream=self.log)
        self.sandboxes = Sandboxes(self.registry, Capacity(), self.telemetry, spill.of)
        self.app = create_app(load_settings(), self.sandboxes, self.registry, telemetry=self.telemetry)


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Service, str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        service = Spilling(folder)
        async with service.served() as live:
            yield service, f"http://127.0.0.1:{live.port}", live.port
        assert service.backend.alive == []


async def test_run_leaves_nothing_behind() -> None:
    async with served() as (service, url, _):
        echoed = await bulkhead(url, "run", "--", "echo", "hello", "--json")
        warned = await bulkhead(url, "run", "err", "hello")
        failed = await bulkhead(url, "run", "exit", "7")
        missing = await bulkhead(url, "run", "nope")
        refused = await bulkhead(url, "run", "refused", "landlock")
        full = await bulkhead(url, "run", "oom")
        late = await bulkhead(url, "run", "--timeout", "0.05", "sleep")
        assert service.backend.alive == []
    assert (echoed.status, echoed.stdout, echoed.stderr) == (0, b"hello --json\n", "")
    assert (warned.status, warned.stdout, warned.stderr) == (0, b"", "hello\n")
    assert failed.status == 7
    assert (missing.status, missing.stderr) == (127, "bulkhead: start_failed: exec nope: ENOENT\n")
    assert (refused.status, refused.stderr) == (126, "bulkhead: start_failed: step landlock failed: EPERM\n")
    assert (full.status, full.stderr) == (137, "bulkhead: oom: the memory limit was reached\n")
    assert (late.status, late.stderr) == (124, "bulkhead: timeout: still running after 0.05 s\n")


async def test_big_output_and_stdin_arrive_whole() -> None:
    data = os.urandom(3_000_000)
    async with served() as (_, url, _):
        printed = await bulkhead(url, "run", "both", "5000000")
        copied = await bulkhead(url, "run", "cat", stdin=data)
    assert (printed.status, printed.stdout) == (0, pattern(5_000_000))
    assert printed.stderr.encode() == pattern(5_000_000)
    assert (copied.status, copied.stdout) == (0, data)


async def test_cut_streams_lose_and_repeat_nothing() -> None:
    data = os.urandom(2_000_000)
    async with served() as (_, _, port), cutting(port, 200, 1_000_000, 10, 300_000) as (url, proxy):
        printed = await bulkhead(url, "run", "print", "4000000")
        assert proxy.done == 4
        proxy.done = 0
        copied = await bulkhead(url, "run", "cat", stdin=data)
        assert proxy.done == 4
    assert (printed.status, printed.stdout == pattern(4_000_000), printed.stderr) == (0, True, "")
    assert (copied.status, copied.stdout == data, copied.stderr) == (0, True, "")


async def test_ctrl_c_reaches_a_program_that_goes_on_and_twice_kills_it() -> None:
    async with served() as (service, url, _):
        process = await begin(url, "run", "trap", "SIGINT")
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert await process.stdout.readline() == b"SIGINT\n"
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, err) == (137, b"bulkhead: killed: the execution was deleted\n")
        assert service.backend.alive == []


async def test_ctrl_c_ends_a_program_that_does_not_mind_it() -> None:
    async with served() as (service, url, _):
        process = await begin(url, "run", "daemon", "trap", "SIGUSR1")
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        assert len(service.backend.alive) == 3  # the sandbox and two processes
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert service.backend.alive == []


async def test_reader_that_leaves_ends_an_endless_program() -> None:
    async with served() as (service, url, _):
        read_end, write_end = os.pipe()
        process = await begin(url, "run", "spew", stdout=write_end)
        os.close(write_end)
        assert await asyncio.to_thread(os.read, read_end, 8) == pattern(8)
        os.close(read_end)
        _, err = await process.communicate()
        assert (process.returncode, err) == (141, b"")
        assert service.backend.alive == []


async def test_sandbox_is_made_used_shown_and_removed() -> None:
    async with served() as (service, url, _):
        made = await bulkhead(url, "create", "--env", "A=1", "--workdir", "/tmp", "--memory-mib", "64")
        sandbox = made.stdout.decode().strip()
        shown = json.loads((await bulkhead(url, "ls", "--json")).stdout)
        env = await bulkhead(url, "exec", sandbox, "-e", "B=2", "env")
        where = json.loads((await bulkhead(url, "exec", sandbox, "--json", "pwd")).stdout)
        logs = await bulkhead(url, "logs", sandbox, where["execution_id"])
        followed = await bulkhead(url, "logs", "-f", sandbox, where["execution_id"])
        unknown = await bulkhead(url, "kill", sandbox, "exe_nope", "--signal", "SIGINT")
        wrong = await bulkhead(url, "kill", sandbox, where["execution_id"], "--signal", "SIGNOPE")
        removed = await bulkhead(url, "rm", sandbox)
        gone = await bulkhead(url, "exec", sandbox, "pwd")
        table = await bulkhead(url, "ls")
        runtimes = json.loads((await bulkhead(url, "runtimes", "--json")).stdout)
        assert service.backend.alive == []
    assert [(s["id"], s["limits"]["memory_mib"]) for s in shown] == [(sandbox, 64)]
    assert env.stdout == b"A=1\nB=2\n"
    assert where["stdout"] == "/tmp\n"
    assert logs.stdout == followed.stdout == b"/tmp\n"
    assert (unknown.status, wrong.status, removed.status, gone.status) == (125, 125, 0, 125)
    assert ": --signal: " in wrong.stderr
    assert table.stdout.count(b"\n") == 1
    assert [r["name"] for r in runtimes] == ["process"]


async def test_terminal_is_the_programs_until_it_ends() -> None:
    async with served() as (service, url, _), screen() as terminal:
        before = terminal.modes()
        process = await terminal.begin(url, "run", "-t", "trap", "SIGINT")
        await terminal.until(b"ready")
        assert terminal.is_raw()
        terminal.resize(50, 132)
        await terminal.until(b"50x132")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 143
        assert terminal.modes() == before
        assert service.backend.alive == []


async def test_refusals_name_the_field() -> None:
    async with served() as (_, url, _):
        high = await bulkhead(url, "run", "--memory-mib", "99999999", "echo")
        relative = await bulkhead(url, "run", "--workdir", "tmp", "echo")
        unknown = await bulkhead(url, "run", "--runtime", "vmware", "echo")
    assert {high.status, relative.status, unknown.status} == {125}
    assert "memory_mib" in high.stderr
    assert ": --workdir: " in relative.stderr
    assert "process" in unknown.stderr
