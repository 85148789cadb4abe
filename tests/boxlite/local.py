"""The wrapper as a local process: the same streams as over a server, on the pipes of a shell of this host."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from app.backends.boxlite.attach import Chunk, Ended, Socket
from app.backends.boxlite.inside import WRAPPER_MARK
from app.backends.boxlite.streams import CurrentSocket, ExactStreams
from app.backends.boxlite.wrapped import wrapped_command
from app.core.backend import Logs
from app.core.models import Channel, ExecutionLimits
from tests.boxlite.rig import everything, new_log

SHELLS = ("dash", "bash", "busybox")
CHUNK = 1024  # as the server passes output on


class PipeSocket:
    """Stands for the WebSocket. `stalled` holds the reader."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._frames: asyncio.Queue[Chunk | Ended] = asyncio.Queue(256)
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.received = 0  # bytes that the process has said
        self._closed = False
        self._tasks = [asyncio.create_task(self._read(channel)) for channel in Channel]

    async def _read(self, channel: Channel) -> None:
        pipe = self._process.stdout if channel is Channel.STDOUT else self._process.stderr
        assert pipe is not None
        while data := await pipe.read(CHUNK):
            self.received += len(data)
            if not self._closed:
                await self._frames.put(Chunk(channel, data))

    async def frames(self) -> AsyncIterator[Chunk | Ended]:
        ending = asyncio.create_task(self._end())
        try:
            while True:
                await self.go_on.wait()
                frame = await self._frames.get()
                yield frame
                if isinstance(frame, Ended):
                    return
        finally:
            ending.cancel()

    async def _end(self) -> None:
        await asyncio.wait(self._tasks)
        await self._frames.put(Ended(await self._process.wait()))

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    async def close(self) -> None:
        """When the process is dead: what it still said is thrown away, as else nobody learns of its end."""
        self._closed = True
        while not self._frames.empty():
            self._frames.get_nowait()
        await asyncio.wait(self._tasks)
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(ConnectionError):  # of what was written when nobody read any more
            await self._process.stdin.wait_closed()


@dataclass
class Local:
    process: asyncio.subprocess.Process
    socket: PipeSocket
    streams: ExactStreams
    logs: Logs
    mark: str
    code: asyncio.Task[int] = field(repr=False)

    @property
    def out(self) -> bytes:
        return everything(self.logs.stdout)

    @property
    def err(self) -> bytes:
        return everything(self.logs.stderr)

    async def end(self, seconds: float = 60) -> int:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(self.code)

    def left(self) -> list[int]:
        """Processes that carry the bytes."""
        return [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if f"{WRAPPER_MARK}={self.mark}".encode() in _environment(folder)
        ]


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def tools_of(shell: str, folder: Path) -> str:
    """A PATH whose `sh` is this shell, and with it its kin: of busybox all programs, else this host's."""
    folder.mkdir(exist_ok=True)
    names = {"dash": ["sh"], "bash": ["sh"], "busybox": ["sh", "dd", "base64", "env", "setsid"]}[shell]
    for name in names:
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to(f"/usr/bin/{shell}")
    return str(folder) if shell == "busybox" else f"{folder}:/usr/bin:/bin"


@asynccontextmanager
async def local(
    shell: str,
    folder: Path,
    *argv: str,
    stdin: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    user: int | None = None,
    merged: bool = False,
    limits: ExecutionLimits = ExecutionLimits(),  # noqa: B008 - it is frozen
) -> AsyncIterator[Local]:
    mark = f"exe_{os.urandom(6).hex()}"
    variables = env or {"PATH": "/usr/bin:/bin", "MARK": mark}
    said = wrapped_command(argv, variables, stdin=stdin, merged=merged, limits=limits)
    arguments = said["args"]
    assert isinstance(arguments, list)
    path = tools_of(shell, folder)
    process = await asyncio.create_subprocess_exec(
        f"{folder}/sh",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": path, WRAPPER_MARK: mark},
        cwd=cwd,
        user=user,
        start_new_session=True,
        limit=CHUNK,
    )
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    current, logs = CurrentSocket(ended), Logs(new_log(), new_log())
    streams, socket = ExactStreams(logs, current, ended), PipeSocket(process)
    current.begin(cast(Socket, socket))

    async def run() -> int:
        try:
            return await streams.take(cast(Socket, socket))
        finally:
            ended.set_result(None)

    made = Local(process, socket, streams, logs, mark, asyncio.create_task(run()))
    try:
        yield made
    finally:
        made.code.cancel()
        await asyncio.wait([made.code])
        for pid in made.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await socket.close()
        await process.wait()
