"""Sandboxes that are being paused: the worker holds still, the kernel freezes the group, and then the launcher answers.

The worker is asked first, on the socket on which its commands come. When it answers, everything that came before was
started, and the worker is outside of the sandbox's group. If it were frozen in the middle of a start, it could not
report any end.
"""

from __future__ import annotations

import errno
import time

from app.launcher.daemon.checks import Refusal, answer, reply
from app.launcher.daemon.sandbox_process import SandboxProcess
from app.launcher.protocol import REFUSED, ProtocolError

# A process stops when it next gets a processor; one that is above its share waits for that up to 100 ms.
_SECONDS = 2.0


class _Pause:
    __slots__ = ("deadline", "requests")

    def __init__(self, request: int) -> None:
        self.requests = [request]
        self.deadline = time.monotonic() + _SECONDS


class Pauses:
    """The pauses that are under way. A sandbox that is paused already is not here."""

    def __init__(self) -> None:
        self._under_way: dict[SandboxProcess, _Pause] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, sandbox: SandboxProcess, request: int) -> None:
        """Begins a pause. The answer comes when everything in the sandbox has stopped. Raises Refusal."""
        _require(sandbox)
        if sandbox.creating is not None or sandbox.killed:
            raise Refusal("plan", errno.ENOENT, "the sandbox is not ready")
        if sandbox in self._under_way:
            self._under_way[sandbox].requests.append(request)
        elif sandbox.freezer.frozen:
            answer(sandbox.connection, reply(request))
        else:
            try:
                sandbox.hold()
            except OSError as error:
                raise Refusal("pause", error.errno or 0, f"its worker does not listen: {error.strerror}") from error
            self._under_way[sandbox] = _Pause(request)

    def held(self, sandbox: SandboxProcess) -> None:
        """Called when the worker of a sandbox holds still. Raises OSError, and ProtocolError when it was not asked
        to."""
        if sandbox.holds == 0:
            raise ProtocolError("a worker that holds still unasked")
        sandbox.holds -= 1
        if sandbox.holds == 0 and sandbox in self._under_way and not sandbox.killed:
            sandbox.freezer.freeze()
            self._look_at(sandbox)

    def end(self, sandbox: SandboxProcess, request: int) -> None:
        """Ends a pause, also in its middle. Raises Refusal, OSError."""
        _require(sandbox)
        self._give_up(sandbox, errno.ECANCELED, "it was resumed before it was paused")
        answer(sandbox.connection, reply(request))

    def go_on(self) -> None:
        """Raises OSError."""
        for sandbox in tuple(self._under_way):
            self._look_at(sandbox)

    def _look_at(self, sandbox: SandboxProcess) -> None:
        pause = self._under_way[sandbox]
        if sandbox.freezer.settled:
            del self._under_way[sandbox]
            for request in pause.requests:
                answer(sandbox.connection, reply(request))
        elif time.monotonic() > pause.deadline:
            what = "its processes did not all stop" if sandbox.freezer.frozen else "the start of a command was not over"
            self._give_up(sandbox, errno.ETIMEDOUT, f"{what} within {_SECONDS:g} seconds")

    def _give_up(self, sandbox: SandboxProcess, number: int, why: str) -> None:
        sandbox.freezer.thaw()
        self.forget(sandbox, number, why)

    def forget(self, sandbox: SandboxProcess, number: int = errno.ESRCH, why: str = "the sandbox has ended") -> None:
        """Drops a sandbox that has ended. Requests that wait for its pause are refused."""
        pause = self._under_way.pop(sandbox, None)
        for request in pause.requests if pause is not None else ():
            answer(sandbox.connection, reply(request, REFUSED).text("pause").u32(number).text(why))


def _require(sandbox: SandboxProcess) -> None:
    if not sandbox.freezer.available:
        raise Refusal("layer:cgroup_freezer", errno.ENOSYS, "this host has no freezer among its control groups")
