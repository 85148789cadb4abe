"""Starts a script in a box, reads its answers, ends it, and removes what it left. Errors of a script become the errors
that a client of files gets."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.attach import AttachCut, AttachRefused
from app.backends.boxlite.client import seen
from app.backends.boxlite.file_facts import escaped, failure
from app.backends.boxlite.inside import MARK, BoxCommands, shell_command
from app.backends.boxlite.script_session import ScriptEnded, ScriptSession
from app.backends.boxlite.server import BoxliteServer, SpawnFailed
from app.backends.boxlite.turns import TooManyPending, take
from app.core.backend import settle
from app.core.errors import (
    BackendFailure,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    BulkheadError,
    CapacityExceeded,
    UnsupportedByRuntime,
    Upstream,
)
from app.core.tasks import Tasks

AT_ONCE = 16  # of one box
DAY_SECONDS = 86_400.0  # the server's own limit; a script without a socket is ended after five minutes
LANGUAGE = {"LC_ALL": "C", "TZ": "UTC0"}  # of what programs say, and of how they count bytes and time


class ScriptBox(Protocol):
    """The part of a sandbox that a script needs."""

    box_id: str
    inside: BoxCommands

    def check_alive(self) -> None:
        """Raises WrongState."""

    async def kill_when_possible(self, mark: str) -> None:
        """Kills all processes with this mark, as soon as that is possible."""

    async def blamed(self, error: BackendFailure) -> BulkheadError:
        """WrongState when the box has ended, else the error itself."""


class ScriptRunner:
    """`disk_bytes` is the size of the box's disk."""

    def __init__(self, server: BoxliteServer, box: ScriptBox, tasks: Tasks, disk_bytes: int) -> None:
        self._server, self._box, self._tasks, self._disk_bytes = server, box, tasks, disk_bytes
        self._turns = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def begin(self, script: str, path: bytes, *arguments: str, clean: str = "") -> AsyncIterator[ScriptSession]:
        """Starts a script. `clean` is a script with the same arguments that removes what this one leaves if it is
        killed. Raises what `Files` may raise, also inside the block."""
        self._box.check_alive()
        try:
            await take(self._turns, self._server.timeouts.shell)
        except TooManyPending:
            raise CapacityExceeded("operations on files at one time", AT_ONCE, "sandbox") from None
        try:
            async with self._talk(script, (escaped(path), *arguments), clean) as session:
                yield session
        except ScriptEnded as ended:
            if ended.code >= 0:
                raise failure(ended.said, path, self._disk_bytes) from None
            lost = BackendRefused(RUNTIME, f"the box's programs were killed: {ended.code}", Upstream())
            raise await self._box.blamed(lost) from None
        except BackendFailure as error:
            if type(error) is BackendFailure:  # of the image's programs, not of the server
                raise
            blamed = await self._box.blamed(error)
            if blamed is error:
                raise
            raise blamed from error
        finally:
            self._turns.release()

    @asynccontextmanager
    async def _talk(self, script: str, arguments: tuple[str, ...], clean: str) -> AsyncIterator[ScriptSession]:
        mark = f"files-{secrets.token_hex(8)}"
        execution_id = await self._start(script, arguments, mark)
        try:
            async with self._server.attach(self._box.box_id, execution_id) as socket:
                session = ScriptSession(socket, self._server.timeouts)
                try:
                    yield session
                finally:
                    loop = asyncio.get_running_loop()
                    await settle(loop.create_task(self._end(session, execution_id, mark, clean, arguments)))
        except (AttachCut, AttachRefused) as error:
            self._tasks.spawn(self._box.kill_when_possible(mark))
            raise BackendUnavailable(RUNTIME, f"the BoxLite server closed the connection: {error}") from error
        except asyncio.CancelledError:
            self._tasks.spawn(self._box.kill_when_possible(mark))
            raise

    async def _start(self, script: str, arguments: tuple[str, ...], mark: str) -> str:
        body = shell_command(script, *arguments, seconds=DAY_SECONDS) | {"env": {**LANGUAGE, MARK: mark}}
        starting = asyncio.get_running_loop().create_task(self._server.execute(self._box.box_id, body))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(seen)
            starting.add_done_callback(lambda _: self._tasks.spawn(self._box.kill_when_possible(mark)))
            raise
        except SpawnFailed as error:
            raise UnsupportedByRuntime("files in this image, which has no shell that works", RUNTIME) from error
        except BackendTimeout:  # it may have been started, and nobody would ever end it
            self._tasks.spawn(self._box.kill_when_possible(mark))
            raise

    async def _end(
        self, session: ScriptSession, execution_id: str, mark: str, clean: str, arguments: tuple[str, ...]
    ) -> None:
        ended = await session.end()
        if not ended or (session.code is not None and session.code < 0):
            self._tasks.spawn(self._clean(execution_id, mark, clean, arguments))

    async def _clean(self, execution_id: str, mark: str, clean: str, arguments: tuple[str, ...]) -> None:
        """The script did not end by itself, and so took nothing away. Where the box's shell does not kill it, the
        server can, its first process alone."""
        await self._box.kill_when_possible(mark)
        with contextlib.suppress(BackendFailure):
            await self._server.kill(self._box.box_id, execution_id)
        if clean:
            with contextlib.suppress(BackendFailure):
                await self._box.inside.run(clean, *arguments)
