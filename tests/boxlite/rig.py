"""The runtime boxlite over a double, and what every test of it asserts at its end: nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.backends.boxlite.backend import BoxliteBackend
from app.backends.boxlite.inside import MARK
from app.backends.boxlite.sandbox import BoxliteSandbox
from app.backends.boxlite.timeouts import ServerTimeouts
from app.core.backend import ExecutionHandle, Logs
from app.core.limits import Limits
from app.core.models import Command, Exit, OutputMode, SandboxSpec, Stdin, Storage, Terminal
from app.core.output import OutputLog
from app.core.policy import Network, Policy
from app.settings.boxlite import BoxliteSettings
from tests.boxlite.client import box_double
from tests.boxlite.double import Double, Route, Settings
from tests.boxlite.processes import environments

IMAGE = "busybox"
MOST = 64 * 1024 * 1024
PLAIN: dict[str, Any] = {"output_mode": OutputMode.PLAIN}  # for `start`: what is tested has no wrapper, or breaks it
INSTANCE = "0123456789ab"
SPEC = SandboxSpec("boxlite", Limits(cpus=1, memory_mib=64, disk_mib=1024), Policy(), image=IMAGE, storage=Storage.DISK)
# What a test waits for is short; what a double on a busy machine must not run into is long.
QUICK = ServerTimeouts(
    connect=30, control=60, stop=60, signal=60, shell=60, files=60, piece=60, cleanup=60, opening=60, closing=1,
    health_interval=0.2, health_answer=30, status_lag=0.4, exit_after_kill=0.5, backlog_after_end=60, stable_after=1,
    backlog_silence=0.05, backoff=(0.01, 0.02, 0.05, 0.1),
)  # fmt: skip


def quick(**changes: Any) -> ServerTimeouts:
    return replace(QUICK, **changes)


def settings_for(double: Double, *, boot_seconds: float = 300, **changes: Any) -> BoxliteSettings:
    """`boot_seconds`: also less than an operator may set."""
    settings = BoxliteSettings.model_validate(
        {
            "url": double.url,
            "api_key": double.key,
            "images": {IMAGE: {"rootfs_path": "/images/busybox"}},
            "default_image": IMAGE,
            **changes,
        }
    )
    return settings.model_copy(update={"boot_seconds": boot_seconds})


def with_network(*allow: str) -> SandboxSpec:
    return replace(SPEC, policy=replace(SPEC.policy, network=Network("direct", allow)))


class Memory:
    """A spill that keeps everything."""

    def __init__(self, _: int) -> None:
        self._bytes = bytearray()
        self.start = 0

    def write(self, offset: int, data: bytes) -> None:
        self._bytes[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._bytes[offset : offset + size])

    def seal(self) -> None:
        """It never has to make room."""

    def close(self) -> None:
        self._bytes.clear()


def new_log() -> OutputLog:
    return OutputLog(MOST, open_spill=Memory)


def everything(log: OutputLog) -> bytes:
    found = b""
    while len(found) < log.total:
        found += log.read(len(found), MOST)
    return found


_NUMBERS = b"".join(b"%07d\n" % n for n in range(500_000))


def numbers(size: int) -> bytes:
    """No 8 bytes at a multiple of 8 are there twice."""
    return _NUMBERS[:size]


@dataclass
class Run:
    """One execution with its logs."""

    handle: ExecutionHandle
    logs: Logs

    async def end(self, seconds: float = 60) -> Exit:
        async with asyncio.timeout(seconds):
            return await self.handle.wait()

    @property
    def out(self) -> bytes:
        return everything(self.logs.stdout)

    @property
    def err(self) -> bytes:
        return everything(self.logs.stderr)

    async def saw(self, text: bytes) -> None:
        await self.until(lambda: text in self.out)

    async def until(self, there: Callable[[], bool]) -> None:
        """After a change of stdout."""
        changed = asyncio.Event()
        self.logs.stdout.watch(changed.set)
        async with asyncio.timeout(60):
            while not there():
                changed.clear()
                await changed.wait()
        self.logs.stdout.unwatch(changed.set)


@dataclass
class Rig:
    double: Double
    backend: BoxliteBackend

    async def sandbox(self, sandbox_id: str = "sbx_1", spec: SandboxSpec = SPEC) -> BoxliteSandbox:
        async with asyncio.timeout(60):
            return await self.backend.create(sandbox_id, self.backend.fit(spec))

    def routes(self, *leave_out: Route) -> list[Route | None]:
        """What was asked of the server, in order, without the beats of the pulse."""
        quiet = {Route.LIST, Route.ME, *leave_out}
        return [request.route for request in self.double.requests if request.route not in quiet]

    def names(self) -> list[str | None]:
        return [box.options.name for box in self.double.boxes]

    def marked(self) -> list[int]:
        """Processes in boxes that carry the mark of an execution."""
        return [pid for pid, environment in environments(self.double).items() if f"{MARK}=".encode() in environment]

    async def beats(self, number: int = 1) -> None:
        """Returns when the server has been asked so often again."""
        wanted = len(self.double.sent(Route.LIST)) + number
        await until(lambda: len(self.double.sent(Route.LIST)) >= wanted)


async def start(
    sandbox: BoxliteSandbox, *argv: str, execution_id: str = "exe_1", stdin: bool = False, **options: Any
) -> Run:
    logs = Logs(new_log(), new_log())
    command = Command(
        argv, workdir=options.pop("workdir", "/"), stdin=Stdin.OPEN if stdin else Stdin.NONE, timeout_seconds=60
    )
    if "tty" in options:
        options["tty"] = Terminal(*options["tty"])
    return Run(await sandbox.execute(execution_id, replace(command, **options), logs), logs)


async def until(there: Callable[[], Any], seconds: float = 60) -> None:
    """For what has no event that a test could wait for."""
    async with asyncio.timeout(seconds):
        while not there():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@asynccontextmanager
async def rig(
    settings: Settings | None = None, timeouts: ServerTimeouts = QUICK, *, opened: bool = True, **changes: Any
) -> AsyncIterator[Rig]:
    """At its end no box of this instance is on the server, and of the backend no task and no descriptor is left."""
    async with box_double(settings or Settings()) as double:
        before, tasks = descriptors(), asyncio.all_tasks()
        backend = BoxliteBackend(settings_for(double, **changes), INSTANCE, timeouts)
        if opened:
            backend.open()
        try:
            yield Rig(double, backend)
        finally:
            await backend.aclose()
        await left_nothing(double, tasks, before)


async def left_nothing(double: Double, tasks: set[asyncio.Task[Any]], before: int) -> None:
    ours = [box.options.name for box in double.boxes if (box.options.name or "").startswith(f"bh-{INSTANCE}-")]
    assert not ours, ours
    double.faults.clear()
    for box in double.boxes:  # somebody else's
        await double._engine.delete(box, force=True)

    def over() -> bool:
        return descriptors() <= before and not (_of_us() - tasks)

    try:
        await until(over, 5)
    except TimeoutError:
        raise AssertionError(f"{descriptors() - before} descriptors, {_of_us() - tasks}") from None


def _of_us() -> set[asyncio.Task[Any]]:
    """Without those of the double."""
    return {task for task in asyncio.all_tasks() if "/boxlite/double/" not in _file(task)}


def _file(task: asyncio.Task[Any]) -> str:
    return str(getattr(getattr(task.get_coro(), "cr_code", None), "co_filename", ""))
