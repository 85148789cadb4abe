"""One run of a box, from its boot to its end: the machine, the main command, and what else was started in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from tests.boxlite.double.boot import main_failure
from tests.boxlite.double.execution import Execution
from tests.boxlite.double.machine import CannotStart, GuestLost, Machine, NoSuchProcess, Process, Program

KILLED = 137


class Run:
    def __init__(self, machine: Machine, main: Execution, process: Process, main_seconds: float) -> None:
        self.machine = machine
        self.main = main
        self.executions = [main]  # also those that nobody can ask for any more
        self.ending = False  # the main command is gone, or the machine is, and the server has not noticed
        self._process = process
        self._main_seconds = main_seconds
        self._going: asyncio.Task[None] | None = None
        self._off: asyncio.Task[None] | None = None

    @classmethod
    async def boot(
        cls, folder: Path, program: Program, container_id: str, main_seconds: float, *, shares_network: bool = False
    ) -> Run:
        """Up to the main command, which `go` lets run."""
        machine = await Machine.boot(folder, shares_network=shares_network)
        try:
            process = await machine.prepare(program)
        except CannotStart as error:
            await machine.power_off()
            raise main_failure(error, program, container_id) from error
        except BaseException:
            await machine.power_off()
            raise
        return cls(machine, Execution(container_id, machine, process, main=True), process, main_seconds)

    @property
    def lost(self) -> bool:
        return self.machine.lost

    @property
    def exit_code(self) -> int | None:
        """How the main command ended, as a shell counts; unknown when the machine died under it."""
        return self.main.leader_code

    def when_over(self, call: Callable[[], None]) -> None:
        self._process.exited.add_done_callback(lambda _: call())

    def go(self) -> None:
        """Lets the main command run, in the background; only the server's log would tell of a failure."""

        async def run() -> None:
            await asyncio.sleep(self._main_seconds)
            with contextlib.suppress(CannotStart, GuestLost):
                await self.machine.run()

        if self._going is None:
            self._going = asyncio.get_running_loop().create_task(run())

    async def gone(self) -> None:
        """What `go` began is done, or was never begun."""
        if self._going is not None:
            await asyncio.shield(self._going)

    def busy(self) -> bool:
        return any(not execution.ended for execution in self.executions if execution is not self.main)

    def lose_executions(self, note: str = "", *, main: bool = True) -> None:
        for execution in self.executions:
            if main or execution is not self.main:
                execution.lose(note)

    async def stop(self, grace: float) -> int | None:
        """TERM to the main command and, after `grace`, the end of everything. Returns the box's exit code."""
        self.lose_executions(main=False)
        await self.gone()
        with contextlib.suppress(NoSuchProcess, GuestLost, TimeoutError):
            self.main.end_stdin()
            await self.main.signal(15)
            await asyncio.wait_for(self.main.leader_ended(), grace)
        code = self.exit_code
        if code is None and not self.lost:
            code = KILLED
        await self.power_off()
        return code

    async def power_off(self) -> None:
        """Returns when nothing of it is left; who is cancelled meanwhile does not cancel that."""
        if self._off is None:
            self._off = asyncio.get_running_loop().create_task(self.machine.power_off())
        await asyncio.shield(self._off)
