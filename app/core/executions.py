"""Executions as the core sees them: one execution with its logs, its time limit, its stdin and its exit; and all
executions of one sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import MappingProxyType

from app.core.backend import ExecutionHandle, Logs, RuntimeInfo, SandboxHandle
from app.core.budget import Account
from app.core.capabilities import Capability
from app.core.commands import command_bytes, environment_bytes
from app.core.errors import BackendFailure, BulkheadError, CapacityExceeded, Conflict, WrongState
from app.core.follow import Follower
from app.core.models import (
    Channel,
    Command,
    ExecutionState,
    Exit,
    ExitReason,
    OnOutputLimit,
    ResourceUsage,
    SandboxSpec,
    Stdin,
    Terminal,
    new_id,
    now,
)
from app.core.output import OutputLog
from app.core.resources import HELD_EXECUTIONS, Resources
from app.core.tasks import Tasks

DELETED = "the execution was deleted"


def _digest(env: Mapping[str, str]) -> bytes:
    digest = hashlib.sha256()
    for name, value in sorted(env.items()):
        digest.update(f"{name}={value}\0".encode())
    return digest.digest()


class Execution:
    """Made by `Sandbox.execute`. `exit` appears once and never changes."""

    def __init__(self, execution_id: str, sandbox_id: str, sequence: int, command: Command, logs: Logs) -> None:
        self.id = execution_id
        self.sandbox_id = sandbox_id
        self.sequence = sequence
        self.command = command
        self.outputs = logs
        self.logs: dict[Channel, OutputLog] = {Channel.STDOUT: logs.stdout, Channel.STDERR: logs.stderr}
        self.started_at: datetime = now()
        self.ended_at: datetime | None = None
        self.exit: Exit | None = None
        self.failure: BulkheadError | None = None  # the runtime itself failed: nothing was started
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.stdin_bytes = 0
        self.over = False  # it has ended, and nothing holds its output: only the record is left
        self.reads_stdin = True  # False once bytes were discarded, as nobody can read them any more
        self.viewers = 0
        self._env_digest = b""  # of the command's environment, which is kept until the end only
        self._stdin_open = command.stdin is Stdin.OPEN
        self._lease: StdinLease | None = None
        self._handle: ExecutionHandle | None = None
        self._intent: tuple[ExitReason, str] | None = None
        self._tasks = Tasks()
        self._killing: asyncio.Task[None] | None = None
        self._feeding = asyncio.Lock()
        self._write: asyncio.Task[None] | None = None

    @property
    def state(self) -> ExecutionState:
        return ExecutionState.RUNNING if self.exit is None else ExecutionState.ENDED

    # --- from start to end

    async def run(self, start: Callable[[], Awaitable[ExecutionHandle]]) -> None:
        """Starts the command and returns when it has ended. The sandbox owns this task, never a client's request."""
        deadline: asyncio.TimerHandle | None = None
        on_change = self._check_output_limit
        for log in self.logs.values():
            log.watch(on_change)
        try:
            self._handle = handle = await self._start(start)
            self.started.set()
            deadline = asyncio.get_running_loop().call_later(
                self.command.timeout_seconds,
                self.end_soon,
                ExitReason.TIMEOUT,
                f"still running after {self.command.timeout_seconds:g} s",
            )
            if self._intent is not None:  # asked to end while it was being started
                self.end_soon(*self._intent)
            self._finish(self._explain(await handle.wait()))
        except BulkheadError as error:
            self._finish(Exit(ExitReason.LOST, detail=str(error)))
        finally:
            if deadline is not None:
                deadline.cancel()
            for log in self.logs.values():
                log.unwatch(on_change)
            if self.exit is None:
                self._finish(Exit(ExitReason.LOST, detail="the service stopped"))

    async def _start(self, start: Callable[[], Awaitable[ExecutionHandle]]) -> ExecutionHandle:
        try:
            return await start()
        except BulkheadError as error:
            self.failure = error
            raise
        except BaseException as error:
            self.failure = BackendFailure(f"the command was not started: {type(error).__name__}")
            raise

    def _explain(self, natural: Exit) -> Exit:
        """A kill is the reason only if it ended the program. A program that exited first has exited."""
        if self._intent is None or natural.signal != "SIGKILL" or natural.unprompted:
            return natural
        reason, detail = self._intent  # what the runtime adds, such as what may live on, is kept
        return replace(natural, reason=reason, detail=f"{detail}; {natural.detail}" if natural.detail else detail)

    def _finish(self, exit_: Exit) -> None:
        self.exit = exit_
        self.ended_at = now()
        for log in self.logs.values():
            log.close()
        self.started.set()
        self.ended.set()

    async def end(self, reason: ExitReason, detail: str) -> None:
        """Kills everything that the execution started. The first reason given counts. Returns when all of it is gone.
        Goes on even if the caller is cancelled."""
        self.mark(reason, detail)
        if self._handle is None:
            return  # `run` ends what it starts
        if self._killing is None or self._killing.done():
            self._killing = self._tasks.spawn(self._handle.kill())
        await asyncio.shield(self._killing)

    async def kill(self) -> None:
        """When this returns, everything that it started is gone. Goes on even if the caller is cancelled.
        Idempotent."""
        self.mark(ExitReason.KILLED, DELETED)
        await self.started.wait()
        await self.end(ExitReason.KILLED, DELETED)
        await self.wait()

    def mark(self, reason: ExitReason, detail: str) -> None:
        """Records the reason for a kill that happens elsewhere (at the sandbox's end)."""
        if self._intent is None and self.exit is None:
            self._intent = (reason, detail)

    def end_soon(self, reason: ExitReason, detail: str) -> None:
        """Like `end`, without waiting. An execution that is being started is ended after its start."""
        self.mark(reason, detail)
        if self._handle is not None:
            # An error of the runtime is dropped: the runtime is gone, and then so is the execution: `wait` says so.
            self._tasks.spawn(self.end(reason, detail))

    def _check_output_limit(self) -> None:
        if self.command.on_output_limit is OnOutputLimit.KILL and self._intent is None:
            for channel, log in self.logs.items():
                if log.overflowed:
                    self.end_soon(ExitReason.OUTPUT_LIMIT, f"{channel} passed {log.capacity} bytes")
                    return

    async def wait(self, seconds: float | None = None) -> None:
        """Returns at the end or after `seconds`, whichever comes first."""
        if self.exit is not None or seconds == 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return

    def repeats(self, command: Command, *, with_env: bool) -> bool:
        """Whether the command is the one that was started."""
        if replace(self.command, env={}) != replace(command, env={}):
            return False
        return not with_env or _digest(command.env) == (self._env_digest or _digest(self.command.env))

    def forget_environment(self) -> None:
        """Drops the environment: no answer shows it, and it may have 2 MiB. `repeats` still works."""
        if self.command.env:
            self._env_digest = _digest(self.command.env)
            self.command = replace(self.command, env={})

    async def usage(self) -> ResourceUsage:
        """Raises BackendFailure."""
        await self.started.wait()
        return ResourceUsage() if self._handle is None else await self._handle.usage()

    # --- what clients do to it

    async def signal(self, number: int) -> None:
        """Raises WrongState after the end of the execution."""
        await (await self._running()).signal(number)

    async def resize(self, size: Terminal) -> None:
        """Raises WrongState after the end of the execution, and when it has no terminal."""
        if self.command.tty is None:
            raise WrongState(self.state, "the execution was started without a terminal")
        await (await self._running()).resize(size.rows, size.cols)

    async def _running(self) -> ExecutionHandle:
        await self.started.wait()
        if self.exit is not None or self._handle is None:
            raise WrongState(self.state, "the execution has ended")
        return self._handle

    def follow(self, offsets: dict[Channel, int]) -> Follower:
        return Follower(self.logs, offsets)

    def lease_stdin(self, *, take: bool) -> StdinLease:
        """Raises WrongState when there is no stdin to feed, Conflict when somebody else holds it."""
        self._check_stdin()
        if self._lease is not None:
            if not take:
                raise Conflict(
                    "another client feeds the stdin of this execution; a stream with stdin=take takes it over"
                )
            self._lease.taken_over.set()
        self._lease = StdinLease(self)
        return self._lease

    def release_stdin(self, lease: StdinLease) -> None:
        if self._lease is lease:
            self._lease = None

    def _check_stdin(self, lease: StdinLease | None = None) -> None:
        if self.command.stdin is Stdin.NONE:
            raise WrongState(self.state, "the execution was started with stdin: none")
        if self.exit is not None:
            raise WrongState(self.state, "the execution has ended")
        if not self._stdin_open:
            raise WrongState(self.state, "stdin has been closed")
        if lease is not None and lease is not self._lease:
            raise WrongState(self.state, "another stream has taken stdin over")

    async def feed(self, data: bytes, lease: StdinLease | None = None) -> None:
        """Bytes that were counted go in even if the caller is cancelled. Nothing more is accepted while they wait."""
        async with self._feeding:
            handle = await self._stdin_ready(lease)
            self.stdin_bytes += len(data)
            self._write = self._tasks.spawn(self._fed(handle, data))
            await asyncio.shield(self._write)

    async def _fed(self, handle: ExecutionHandle, data: bytes) -> None:
        try:
            self.reads_stdin = await handle.write(data)
        except BulkheadError:  # a client that comes back goes on behind what went in
            self.stdin_bytes -= len(data)
            raise

    async def end_stdin(self, lease: StdinLease | None = None) -> None:
        async with self._feeding:
            handle = await self._stdin_ready(lease)
            self._stdin_open = False
            self._write = self._tasks.spawn(handle.close_stdin())
            await asyncio.shield(self._write)

    async def _stdin_ready(self, lease: StdinLease | None) -> ExecutionHandle:
        await self.started.wait()
        if self._write is not None and not self._write.done():  # of a caller that was cancelled
            await asyncio.wait([self._write])
        self._check_stdin(lease)
        if self._handle is None:
            raise WrongState(self.state, "the execution could not be started")
        return self._handle

    async def settled(self) -> None:
        """Returns when the kills and writes that were begun for this execution are over."""
        await self._tasks.settled()

    async def output_ended(self) -> None:
        """Returns when nothing holds the output of what was started any more."""
        if self._handle is not None:
            await self._handle.output_ended()
        self.over = True

    def enter_view(self, limit: int) -> None:
        if self.viewers >= limit:
            raise CapacityExceeded("viewers", limit, "execution")
        self.viewers += 1

    def leave_view(self) -> None:
        self.viewers -= 1


class StdinLease:
    """The right to feed one execution's stdin. One client has it at a time, and another may take it over."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self.taken_over = asyncio.Event()

    async def write(self, data: bytes) -> None:
        """Raises WrongState after the end of stdin, of the execution or of this lease."""
        await self._execution.feed(data, self)

    async def close(self) -> None:
        """Raises WrongState as `write` does."""
        await self._execution.end_stdin(self)

    def release(self) -> None:
        self._execution.release_stdin(self)


class Executions:
    """The executions of one sandbox: those that run, and records of those that have ended, while there is room.

    `commands`: the budget for bytes that are kept of requests. `used` is called at each end.
    """

    def __init__(
        self,
        sandbox_id: str,
        spec: SandboxSpec,
        runtime: RuntimeInfo,
        resources: Resources,
        commands: Account,
        used: Callable[[], None],
    ) -> None:
        self._sandbox_id = sandbox_id
        self._runtime = spec.runtime
        self._output_bytes = spec.limits.output_bytes
        self._exact = Capability.EXACT_OUTPUT in runtime.capabilities
        self._resources = resources
        self._commands = commands
        self._used = used
        self._spill = None if resources.spill_of is None else resources.spill_of(sandbox_id)
        self._executions: dict[str, Execution] = {}
        self._running = 0  # counted, as thousands of ended ones may be kept
        self.known: Mapping[str, Execution] = MappingProxyType(self._executions)  # oldest first

    @property
    def running(self) -> int:
        return self._running

    def start(self, handle: SandboxHandle, command: Command, execution_id: str | None) -> Execution:
        """Raises CapacityExceeded, BoundExceeded."""
        self._admit(command_bytes(command) + environment_bytes(command.env))
        logs = Logs(self._log(command), self._log(command))
        name, sequence = execution_id or new_id("exe_"), self._resources.next_sequence()
        execution = Execution(name, self._sandbox_id, sequence, command, logs)
        self._executions[execution.id] = execution
        self._running += 1
        self._resources.tasks.spawn(self._run(handle, execution))
        return execution

    def _admit(self, size: int) -> None:
        most, held = self._resources.capacity.executions_running, self._resources.executions
        if held.held(self._sandbox_id) >= most:
            raise CapacityExceeded(HELD_EXECUTIONS, most, "sandbox")
        self._make_room(size)
        if self._spill is not None:
            self._spill.check()
        held.check(self._sandbox_id)
        self._commands.take(size)
        held.take(self._sandbox_id)

    def _make_room(self, size: int) -> None:
        """Forgets the oldest records until another one of `size` bytes may be kept. Raises CapacityExceeded when the
        rest runs or is watched."""
        most = self._resources.capacity.executions_kept
        while len(self._executions) >= most or not self._commands.fits(size):
            oldest = next((known for known in self._executions.values() if known.over and not known.viewers), None)
            if oldest is None:
                self._commands.check(size)
                raise CapacityExceeded(
                    "executions that run, have left processes behind or are watched", most, "sandbox"
                )
            for log in oldest.logs.values():
                self._resources.ended_output.discard(self._sandbox_id, log)
            self._forget(oldest)

    def _forget(self, execution: Execution) -> None:
        if self._executions.pop(execution.id, None) is not None:
            self._commands.give_back(command_bytes(execution.command))

    def _log(self, command: Command) -> OutputLog:
        most = self._output_bytes
        return OutputLog(
            most if command.output_bytes is None else min(most, command.output_bytes),
            keep_first=command.on_output_limit is OnOutputLimit.KILL,
            exact=self._exact,
            open_spill=None if self._spill is None else self._spill.open,
        )

    async def _run(self, handle: SandboxHandle, execution: Execution) -> None:
        try:
            try:
                await execution.run(partial(self._start, handle, execution))
            finally:
                self._ended(execution)
            await execution.output_ended()  # nearly always at once: whoever saw the end may begin another
        finally:
            self._resources.executions.give_back(self._sandbox_id)
        await execution.settled()

    async def _start(self, handle: SandboxHandle, execution: Execution) -> ExecutionHandle:
        began = time.perf_counter()
        started = await handle.execute(execution.id, execution.command, execution.outputs)
        self._resources.observer.execution_started(self._runtime, time.perf_counter() - began)
        return started

    def _ended(self, execution: Execution) -> None:
        self._running -= 1
        self._commands.give_back(environment_bytes(execution.command.env))
        execution.forget_environment()
        if execution.failure is not None:  # nothing was started, whether or not its client is still there
            self._forget(execution)
        elif execution.exit is not None:
            logs = execution.logs.values()
            output = sum(log.total for log in logs)
            self._resources.observer.execution_ended(self._runtime, execution.exit.reason, output)
            for log in logs:
                self._resources.ended_output.add(self._sandbox_id, log)
        self._used()
