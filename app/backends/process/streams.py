"""The pipes of one command, from the descriptors that go to the launcher to the last byte that is read."""

from __future__ import annotations

import contextlib
import os

from app.backends.process.pipes import OutputPump, PipeBudget, StdinPipe
from app.core.backend import Logs
from app.core.commands import is_merged
from app.core.models import Command, Stdin


class Streams:
    def __init__(self) -> None:
        self.stdin: StdinPipe | None = None
        self._pumps: list[OutputPump] = []

    def open(self, command: Command, logs: Logs, budget: PipeBudget, far_ends: contextlib.ExitStack) -> list[int]:
        """Returns the command's descriptors 0, 1, 2, which `far_ends` closes. Raises OSError. Then call `close` for
        what was opened."""
        stdin, near = os.pipe2(os.O_CLOEXEC)
        far_ends.callback(os.close, stdin)
        if command.stdin is Stdin.OPEN:
            self.stdin = StdinPipe(near)
        else:  # An empty pipe, not /dev/null: that is one inode for the whole host, to be locked and watched by all.
            os.close(near)
        os.fchmod(stdin, 0o644)  # a command may open /dev/stdin and the like anew, as another user than ours
        descriptors = [stdin]
        for log in (logs.stdout,) if is_merged(command) else (logs.stdout, logs.stderr):
            near, far = os.pipe2(os.O_CLOEXEC)
            far_ends.callback(os.close, far)
            self._pumps.append(OutputPump(near, log, budget))
            os.fchmod(far, 0o622)
            descriptors.append(far)
        return (descriptors + descriptors[-1:])[:3]  # two channels in one pipe are two ends of it for the command

    async def drain(self) -> None:
        for pump in self._pumps:
            await pump.drain()

    def close_stdin(self) -> None:
        if self.stdin is not None:
            self.stdin.close()

    async def output_ended(self) -> None:
        """Returns when no process holds the output any more, or `close` was called."""
        for pump in self._pumps:
            await pump.wait()

    def close(self) -> None:
        for pump in self._pumps:
            pump.close()
        self.close_stdin()
