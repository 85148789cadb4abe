"""How an execution ended when its exit frame does not say so or never comes. Nothing is invented."""

from __future__ import annotations

import asyncio
import errno
from typing import Protocol

from app.backends.boxlite.client import shown
from app.backends.boxlite.inside import BoxCommands
from app.backends.boxlite.server import is_silent
from app.backends.boxlite.timeouts import ServerTimeouts
from app.backends.boxlite.turns import PendingLimit
from app.core.commands import hint_for, signal_name
from app.core.errors import BackendFailure
from app.core.models import Command, Exit, ExitReason

KILLED = Exit(ExitReason.SIGNALED, signal="SIGKILL")
NO_WORKDIR = "failed to unix syscall"  # how the server says so
WRAPPER_FAILED = 125
LIMITS_FAILED = "cannot set limits"  # as the wrapper says it
_SIGHUP = 1


def start_failed(command: Command, said: str) -> Exit:
    """The server's reasons, as 0.10.8 words them."""
    program, reason = command.argv[0], " ".join(said.split())[-300:]
    if "not found in $PATH" in said:
        return _not_found(program)
    if "does not have correct permissions" in said:
        return _denied(program)
    if NO_WORKDIR in said:
        detail = f"{program!r} cannot be started; mostly the working directory {command.workdir!r} does not exist"
        return Exit(ExitReason.START_FAILED, detail=detail)
    return Exit(ExitReason.START_FAILED, detail=f"{program!r} cannot be started: {reason}")


def start_refused(command: Command, why: str, code: int) -> Exit | None:
    """The wrapper's reasons. None when there is none, or when another program has exited: the code counts more than
    what was printed."""
    program = command.argv[0]
    if (why, code) == ("missing", 127):
        return _not_found(program)
    if (why, code) == ("denied", 126):
        return _denied(program)
    if (why, code) == (LIMITS_FAILED, WRAPPER_FAILED):
        return Exit(ExitReason.START_FAILED, detail="the shell of the image cannot set the limits of the execution")
    if why and code == WRAPPER_FAILED:
        detail = f"output cannot be exact, because the box {shown(why)}; try output_mode plain"
        return Exit(ExitReason.START_FAILED, detail=detail)
    return None


def _not_found(program: str) -> Exit:
    detail = f"{program!r} was not found in the box" + hint_for(program, errno.ENOENT)
    return Exit(ExitReason.START_FAILED, detail=detail, not_found=True)


def _denied(program: str) -> Exit:
    detail = f"{program!r} cannot be executed: EACCES" + hint_for(program, errno.EACCES)
    return Exit(ExitReason.START_FAILED, detail=detail)


class ExecutionBox(Protocol):
    """The part of a sandbox that an execution needs."""

    box_id: str
    inside: BoxCommands
    asks: PendingLimit

    @property
    def ending(self) -> bool:
        """Whether it is being destroyed."""

    async def look(self, *, patient: bool = True) -> str | None:
        """Returns why the box has ended, or None when it runs. Raises a BackendFailure when this cannot be found
        out."""

    async def kill_when_possible(self, mark: str) -> None:
        """Kills all processes with this mark, as soon as that is possible."""

    async def server_there(self) -> None:
        """Returns when the server has answered a new health check."""


class Ending:
    def __init__(self, box: ExecutionBox, mark: str, timeouts: ServerTimeouts) -> None:
        self._box, self._mark, self._timeouts = box, mark, timeouts

    async def forgotten(self) -> Exit:
        """The server was restarted and has forgotten the execution. The program may still run in the box, where only
        Bulkhead can reach it."""
        await self._box.kill_when_possible(self._mark)
        why = await self._why_lost()
        return Exit(
            ExitReason.LOST,
            detail=why or "the BoxLite server was started again and does not know the execution any more",
        )

    async def _why_lost(self, *, patient: bool = True) -> str | None:
        """Why the box has ended, or None when it runs; asked again when the server is back."""
        failures = 0
        while True:
            try:
                return await self._box.look(patient=patient)
            except BackendFailure as error:
                if not is_silent(error):
                    raise
            await asyncio.sleep(self._timeouts.pause(failures))
            await self._box.server_there()
            failures += 1

    async def natural(self, code: int, *, hung_up: bool) -> Exit:
        if code >= 0:
            return Exit(ExitReason.EXITED, code=code)
        if code < -1:
            return Exit(ExitReason.SIGNALED, signal=signal_name(-code))
        # The box ended, the server is stopping, or it died of SIGHUP: if we sent that, one look is enough.
        why = None if self._box.ending else await self._why_lost(patient=not hung_up)
        if self._box.ending:
            return KILLED
        if why is None and hung_up:
            return Exit(ExitReason.SIGNALED, signal=signal_name(_SIGHUP))
        if why is None:  # a server that is stopping says so of programs that live on
            await self._box.kill_when_possible(self._mark)
        return Exit(
            ExitReason.LOST,
            detail=why or "the BoxLite server does not tell how the execution ended; its box still runs",
        )
