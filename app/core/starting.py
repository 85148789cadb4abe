"""How an execution begins within the service's numbers, and what is given back when, after its end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from app.core.backend import Capability, ExecutionHandle, Logs, SandboxHandle
from app.core.budget import Budget
from app.core.commands import command_bytes, environment_bytes
from app.core.ended import EndedOutput
from app.core.errors import CapacityExceeded, WrongState
from app.core.executions import Execution
from app.core.lifetimes import Lifetimes
from app.core.models import Command, OnOutputLimit, SandboxState, new_id
from app.core.output import OutputLog
from app.core.records import Capacity, Observer, Records, Sandbox
from app.core.registry import Registry
from app.core.tasks import Tasks

_HELD = "running executions, and ended ones whose output something that they left behind holds,"


def repeats(execution: Execution, command: Command, *, with_env: bool) -> bool:
    """Whether the command is the one that was started."""
    if replace(execution.command, env={}) != replace(command, env={}):
        return False
    return not with_env or _digest(command.env) == (execution.env_digest or _digest(execution.command.env))


def _digest(env: Mapping[str, str]) -> bytes:
    digest = hashlib.sha256()
    for name, value in sorted(env.items()):
        digest.update(f"{name}={value}\0".encode())
    return digest.digest()


class Starts:
    def __init__(
        self,
        registry: Registry,
        capacity: Capacity,
        observer: Observer,
        records: Records,
        lifetimes: Lifetimes,
        tasks: Tasks,
        ended_output: EndedOutput,
    ) -> None:
        self._registry, self._capacity, self._observer = registry, capacity, observer
        self._records, self._lifetimes = records, lifetimes
        self._tasks, self._ended_output = tasks, ended_output
        self._held = Budget(_HELD, capacity.executions, "sandbox")

    def begin(self, sandbox: Sandbox, command: Command, execution_id: str | None, sequence: int) -> Execution:
        """Raises WrongState, CapacityExceeded."""
        handle = self._admit(sandbox, command_bytes(command) + environment_bytes(command.env))
        execution = self._execution(sandbox, command, execution_id or new_id("exe_"), sequence)
        sandbox.executions[execution.id] = execution
        sandbox.running += 1
        self._tasks.spawn(self._run(sandbox, handle, execution))
        return execution

    def _admit(self, sandbox: Sandbox, size: int) -> SandboxHandle:
        if sandbox.state is not SandboxState.RUNNING or sandbox.handle is None or sandbox.ending is not None:
            raise WrongState(sandbox.state, f"the sandbox is {sandbox.describe()}")
        if self._held.held(sandbox.id) >= self._capacity.executions_running:
            raise CapacityExceeded(f"{_HELD} in one sandbox", self._capacity.executions_running)
        self._make_room(sandbox, size)
        if sandbox.spill is not None:
            sandbox.spill.check()
        self._held.check(sandbox.id)
        self._records.commands.take(sandbox.id, size)
        self._held.take(sandbox.id)
        return sandbox.handle

    def _make_room(self, sandbox: Sandbox, size: int) -> None:
        """Forgets the oldest records until another one of `size` bytes may be kept. Raises CapacityExceeded when the
        rest runs or is watched."""
        commands, most = self._records.commands, self._capacity.executions_kept
        while len(sandbox.executions) >= most or not commands.fits(sandbox.id, size):
            oldest = next((known for known in sandbox.executions.values() if known.over and not known.viewers), None)
            if oldest is None:
                commands.check(sandbox.id, size)
                raise CapacityExceeded("executions of one sandbox that run, hold their output or are watched", most)
            for log in oldest.logs.values():
                self._ended_output.discard(sandbox.id, log)
            del sandbox.executions[oldest.id]
            self._records.release(sandbox, command_bytes(oldest.command))

    def _execution(self, sandbox: Sandbox, command: Command, execution_id: str, sequence: int) -> Execution:
        capabilities = self._registry.get(sandbox.spec.runtime).info.capabilities
        log = partial(
            OutputLog,
            sandbox.spec.limits.output_bytes,
            keep_first=command.on_output_limit is OnOutputLimit.KILL,
            exact=Capability.EXACT_OUTPUT in capabilities,
            open_spill=None if sandbox.spill is None else sandbox.spill.open,
        )
        return Execution(execution_id, sandbox.id, sequence, command, Logs(log(), log()))

    async def _run(self, sandbox: Sandbox, handle: SandboxHandle, execution: Execution) -> None:
        began = time.perf_counter()

        async def start() -> ExecutionHandle:
            started = await handle.execute(execution.id, execution.command, execution.outputs)
            self._observer.execution_started(sandbox.spec.runtime, time.perf_counter() - began)
            return started

        try:
            try:
                await execution.run(start)
            finally:
                self._ended(sandbox, execution)
            await execution.output_ended()  # nearly always at once: whoever saw the end may begin another
        finally:
            self._held.give_back(sandbox.id)
        await execution.settled()

    def _ended(self, sandbox: Sandbox, execution: Execution) -> None:
        sandbox.running -= 1
        self._records.release(sandbox, environment_bytes(execution.command.env))
        execution.env_digest = _digest(execution.command.env)
        execution.command = replace(execution.command, env={})  # no answer tells it, and of each it may be 2 MiB
        if execution.failure is not None:  # nothing was started, whether or not its client is still there
            sandbox.executions.pop(execution.id, None)
            self._records.release(sandbox, command_bytes(execution.command))
        elif execution.exit is not None:
            logs = execution.logs.values()
            output = sum(log.total for log in logs)
            self._observer.execution_ended(sandbox.spec.runtime, execution.exit.reason, output)
            for log in logs:
                self._ended_output.add(sandbox.id, log)
        sandbox.touch()
        self._lifetimes.arm(sandbox)
