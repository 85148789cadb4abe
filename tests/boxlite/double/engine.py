"""All boxes and executions of the server, found as it finds them."""

from __future__ import annotations

import asyncio
import math
import uuid
from pathlib import Path
from typing import Any

from tests.boxlite.double import fields
from tests.boxlite.double.boot import spawn_failure
from tests.boxlite.double.box import Box
from tests.boxlite.double.create import Options
from tests.boxlite.double.execution import Execution
from tests.boxlite.double.faults import Faults
from tests.boxlite.double.http import Failure, Request, json_body
from tests.boxlite.double.machine import CannotStart, GuestLost, NoSuchProcess, Program
from tests.boxlite.double.refusals import unreachable
from tests.boxlite.double.run import Run
from tests.boxlite.double.session import Frame
from tests.boxlite.double.settings import Settings

EXEC_FIELDS: dict[str, fields.Check] = {
    "command": fields.STRING,
    "args": fields.STRINGS,
    "env": fields.ENVIRONMENT,
    "timeout_seconds": fields.FLOAT,
    "working_dir": fields.STRING,
    "tty": fields.BOOL,
    "stdin": fields.STRING,
}
LONGEST_STRING = 131_072  # the kernel's limit for one string; the real server hangs where it is passed
LARGEST_COMMAND = 205_000  # all strings together, about


class Engine:
    def __init__(self, folder: Path, settings: Settings, faults: Faults, prefix: str) -> None:
        self.prefix = prefix
        self.boxes: list[Box] = []
        self.frames: list[Frame] = []
        self.containers: set[str] = set()  # of all boxes that there ever were: every process in one names it
        self.executions: dict[tuple[str, str], Execution] = {}
        self.counters = dict.fromkeys(("created", "failed", "stopped", "commands", "errors"), 0)
        self._folder = folder
        self._settings = settings
        self._faults = faults

    def find(self, spelling: str) -> Box | None:
        """By id, by name, or by the beginning of an id that is nobody else's."""
        for box in self.boxes:
            if spelling in {box.id, box.options.name}:
                return box
        fits = [box for box in self.boxes if box.id.startswith(spelling)]
        if len(fits) > 1:
            ids = ", ".join(f'"{box.id}"' for box in fits[:3])
            text = f"multiple boxes match prefix '{spelling}': [{ids}]"
            raise Failure("invalid_argument", f"invalid argument: {text}")
        return fits[0] if fits else None

    def box(self, spelling: str, message: str = "box not found: ") -> Box:
        if found := self.find(spelling):
            return found
        raise Failure("not_found", f"{message}{spelling}")

    def create(self, options: Options) -> Box:
        """A record and nothing else: image and sizes are looked at when it boots."""
        if options.name is not None and self.find(options.name):
            raise Failure("invalid_argument", f"invalid argument: box with name '{options.name}' already exists")
        box = Box(options, self._folder, self._settings, self._faults)
        self.boxes.insert(0, box)
        self.containers.add(box.container_id)
        self.counters["created"] += 1
        return box

    async def delete(self, box: Box, *, force: bool) -> None:
        removal = asyncio.get_running_loop().create_task(self._remove(box, force=force))
        removal.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        await asyncio.shield(removal)  # who hangs up does not stop it

    async def _remove(self, box: Box, *, force: bool) -> None:
        await box.delete(force=force)
        if box in self.boxes:
            self.boxes.remove(box)

    def execution(self, spelling: str, execution_id: str) -> Execution:
        """Bound to the spelling of the box with which it was made."""
        found = self.executions.get((spelling, execution_id))
        if found is None:
            raise Failure("not_found", f"execution not found: {execution_id}")
        return found

    async def exec(self, spelling: str, request: Request) -> Execution:
        given = fields.take(json_body(request), request.body, EXEC_FIELDS, required=("command",))
        box = self.box(spelling)
        box.touch()
        seconds = given.get("timeout_seconds", 0)
        if not math.isfinite(seconds) or seconds < 0:
            text = "timeout_seconds must be a non-negative finite number"
            raise Failure("invalid_argument", f"invalid argument: {text}")
        run = await box.wake("exec")
        program = await self._program(box, given)
        start = asyncio.get_running_loop().create_task(self._start(run, program, given))
        start.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        execution = await asyncio.shield(start)  # who hangs up leaves a process that has no execution
        self.executions[spelling, execution.id] = execution
        return execution

    async def kill(self, spelling: str, execution_id: str) -> None:
        """DELETE: doomed before it is killed, forgotten only when that worked, and the leader alone dies."""
        execution = self.execution(spelling, execution_id)
        execution.doomed = True
        await self.signal(execution, 9)
        self.executions.pop((spelling, execution_id), None)

    async def signal(self, execution: Execution, number: int) -> None:
        try:
            await execution.signal(number)
        except (NoSuchProcess, GuestLost) as error:
            raise Failure("internal", "internal error: Failed to send signal") from error

    async def close(self) -> None:
        for box in list(self.boxes):
            await self.delete(box, force=True)

    async def forget(self) -> None:
        """The server was killed: executions and counters were in its memory, boxes are on its disk."""
        self.executions.clear()
        self.counters = dict.fromkeys(self.counters, 0)
        for box in self.boxes:
            await box.survive_crash()

    async def _program(self, box: Box, given: dict[str, Any]) -> Program:
        argv = [given["command"], *given.get("args", [])]
        if any(len(word.encode()) >= LONGEST_STRING for word in argv):
            await asyncio.Event().wait()
        env: dict[str, str] = {}
        for key, value in given.get("env", {}).items():
            if not key or "\0" in key + value:
                why = 'failed to create container: failed to receive. "waiting for init ready". BrokenChannel'
                raise Failure("internal", f"internal error: spawn_failed: internal error: build failed: {why}")
            name, _, rest = f"{key}={value}".partition("=")
            env[name] = rest
        executor = env.pop("BOXLITE_EXECUTOR", None)
        if executor == "guest":
            why = f"Failed to spawn '{argv[0]}': No such file or directory (os error 2)"
            raise Failure("internal", f"internal error: spawn_failed: internal error: {why}")
        if executor is not None and not executor.startswith("container="):
            why = f"Unknown BOXLITE_EXECUTOR value: '{executor}'. Expected 'guest' or 'container=<id>'"
            raise Failure("internal", f"internal error: spawn_failed: {why}")
        if sum(len(word.encode()) for word in (*argv, *env, *env.values())) > LARGEST_COMMAND:
            why = "internal error: sendmsg with fds: EMSGSIZE: Message too long"
            if not any(len(value.encode()) >= LONGEST_STRING for value in env.values()):
                raise Failure("internal", f"internal error: spawn_failed: {why}")
        words = ["" if "\0" in word else word for word in argv]
        return box.program(words, env, given.get("working_dir"), tty=given.get("tty", False))

    async def _start(self, run: Run, program: Program, given: dict[str, Any]) -> Execution:
        try:
            process = await run.machine.spawn(program)
        except CannotStart as error:
            self.counters["errors"] += 1
            raise spawn_failure(error, program) from error
        except GuestLost as error:
            raise unreachable() from error
        self.counters["commands"] += 1
        execution = Execution(str(uuid.uuid4()), run.machine, process)
        run.executions.append(execution)
        if seconds := given.get("timeout_seconds"):
            execution.limit(seconds, self._settings.timeout_grace)
        if "stdin" in given:
            execution.write(given["stdin"].encode())
            execution.end_stdin()
        return execution
