"""The use cases: create, execute, destroy, expire. Everything that a client can do to a sandbox goes through here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from app.core.backend import Capability, ExecutionHandle, Logs, SandboxHandle, settle
from app.core.commands import check_command
from app.core.errors import BulkheadError, CapabilityMissing, CapacityExceeded, Conflict, NotFound, WrongState
from app.core.executions import Execution
from app.core.models import (
    Command,
    ExecutionState,
    ExitReason,
    OnOutputLimit,
    SandboxSpec,
    SandboxState,
    new_id,
    now,
)
from app.core.output import OutputLog, Spill
from app.core.registry import Registry


@dataclass(frozen=True, slots=True)
class Capacity:
    """The operator's numbers; reaching one answers CapacityExceeded, never a slow death."""

    sandboxes: int = 1000
    executions_running: int = 256
    executions_kept: int = 10_000
    viewers: int = 256
    records: int = 10_000
    record_seconds: float = 3600
    stream_end_seconds: float = 10


class Observer(Protocol):
    """Told about what happened; must not raise."""

    def sandbox_created(self, runtime: str, seconds: float) -> None: ...
    def sandbox_ended(self, runtime: str, reason: str) -> None: ...
    def execution_started(self, runtime: str, seconds: float) -> None: ...
    def execution_ended(self, runtime: str, reason: str, output_bytes: int) -> None: ...


class Sandbox:
    """One sandbox's record. Made by `Sandboxes.create`, kept for a while after its end."""

    def __init__(self, sandbox_id: str, sequence: int, spec: SandboxSpec, *, named: bool) -> None:
        self.id = sandbox_id
        self.sequence = sequence
        self.spec = spec
        self.named = named
        self.labels = dict(spec.labels)
        self.ttl_seconds, self.idle_seconds = spec.ttl_seconds, spec.idle_seconds
        self.created_at = self.last_active_at = now()
        self.expires_at: datetime = self.created_at + timedelta(seconds=spec.ttl_seconds)
        self.state = SandboxState.CREATING
        self.state_reason: str | None = None
        self.failure: BulkheadError | None = None
        self.handle: SandboxHandle | None = None
        self.executions: dict[str, Execution] = {}
        self.settled = asyncio.Event()  # no longer `creating`
        self.boot: asyncio.Task[None] | None = None
        self.watch: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def running(self) -> int:
        return sum(1 for e in self.executions.values() if e.state is ExecutionState.RUNNING)

    def touch(self) -> None:
        self.last_active_at = now()


class Sandboxes:
    def __init__(
        self,
        registry: Registry,
        capacity: Capacity,
        observer: Observer,
        open_spill: Callable[[int], Spill] | None = None,
        check_spill: Callable[[], None] = lambda: None,
    ) -> None:
        self.registry = registry
        self.capacity = capacity
        self._observer = observer
        self._open_spill = open_spill
        self._check_spill = check_spill
        self._records: dict[str, Sandbox] = {}
        self._sequence = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # --- create

    def create(self, spec: SandboxSpec, sandbox_id: str | None = None) -> tuple[Sandbox, bool]:
        """Begins a sandbox; True when it is new. With an id that is taken: the same sandbox for the same spec.

        Raises CapabilityMissing, Conflict, CapacityExceeded; errors of the boot come from `wait_created`.
        """
        backend = self.registry.get(spec.runtime)
        missing = spec.requires - backend.info.capabilities
        if missing:
            raise CapabilityMissing(missing, backend.info.name)
        known = self._records.get(sandbox_id) if sandbox_id else None
        if known is not None:
            if known.spec != spec or known.state is SandboxState.DESTROYED:
                raise Conflict(f"the id {known.id!r} is taken by {_describe(known)}")
            return known, False
        self._admit()
        self._sequence += 1
        sandbox = Sandbox(sandbox_id or new_id("sbx_"), self._sequence, spec, named=sandbox_id is not None)
        self._records[sandbox.id] = sandbox
        sandbox.boot = self._spawn(self._boot(sandbox))
        return sandbox, True

    def _admit(self) -> None:
        if self._closing:
            raise CapacityExceeded("sandboxes, as the service is stopping,", 0)
        alive = sum(1 for s in self._records.values() if s.state is not SandboxState.DESTROYED)
        if alive >= self.capacity.sandboxes:
            raise CapacityExceeded("sandboxes", self.capacity.sandboxes)
        if len(self._records) >= self.capacity.records:
            oldest = next((s for s in self._records.values() if s.state is SandboxState.DESTROYED), None)
            if oldest is None:
                raise CapacityExceeded("sandbox records", self.capacity.records)
            self._forget(oldest)

    async def _boot(self, sandbox: Sandbox) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            sandbox.handle = await self.registry.get(sandbox.spec.runtime).create(sandbox.id, sandbox.spec)
        except BulkheadError as error:
            sandbox.failure = error
            sandbox.state, sandbox.state_reason = SandboxState.FAILED, str(error)
            self._observer.sandbox_ended(sandbox.spec.runtime, "create_failed")
            self._arm(sandbox)
        else:
            sandbox.state = SandboxState.RUNNING
            sandbox.watch = self._spawn(self._notice_loss(sandbox, sandbox.handle))
            self._observer.sandbox_created(sandbox.spec.runtime, loop.time() - began)
            self._arm(sandbox)
        finally:
            sandbox.settled.set()

    async def wait_created(self, sandbox: Sandbox, seconds: float) -> None:
        """Returns when it runs or `seconds` passed. Raises the boot's error, and then no record of it is left."""
        await self._wait_settled(sandbox, seconds)
        if sandbox.failure is not None and self._records.get(sandbox.id) is sandbox:
            self._forget(sandbox)
        if sandbox.failure is not None:
            raise sandbox.failure

    async def _wait_settled(self, sandbox: Sandbox, seconds: float) -> None:
        if sandbox.settled.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await sandbox.settled.wait()
        except TimeoutError:
            return

    async def abandon(self, sandbox: Sandbox) -> None:
        """The client that asked for it hung up: without a chosen id nobody can ever find it again."""
        if not sandbox.named:
            await self.destroy(sandbox, "the client hung up before it knew the sandbox")

    # --- find

    def get(self, sandbox_id: str) -> Sandbox:
        """Raises NotFound."""
        sandbox = self._records.get(sandbox_id)
        if sandbox is None:
            raise NotFound("sandbox", sandbox_id)
        return sandbox

    def use(self, sandbox_id: str) -> Sandbox:
        """`get`, counted as activity."""
        sandbox = self.get(sandbox_id)
        sandbox.touch()
        return sandbox

    async def wait(self, sandbox: Sandbox, seconds: float) -> None:
        """Returns when it is no longer `creating`, or after `seconds`."""
        await self._wait_settled(sandbox, seconds)

    def __iter__(self) -> Iterator[Sandbox]:
        """Oldest first."""
        return iter(tuple(self._records.values()))

    def execution(self, sandbox_id: str, execution_id: str) -> Execution:
        """Raises NotFound."""
        execution = self.use(sandbox_id).executions.get(execution_id)
        if execution is None:
            raise NotFound("execution", execution_id)
        return execution

    # --- change

    def update(
        self,
        sandbox: Sandbox,
        *,
        ttl_seconds: float | None = None,
        idle_seconds: float | None = None,
        set_idle: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Raises WrongState on a sandbox that has ended."""
        if sandbox.state in {SandboxState.DESTROYED, SandboxState.FAILED} or sandbox.ending is not None:
            raise WrongState(sandbox.state, f"the sandbox is {sandbox.state}")
        sandbox.touch()
        if ttl_seconds is not None:
            sandbox.ttl_seconds = ttl_seconds
            sandbox.expires_at = now() + timedelta(seconds=ttl_seconds)
        if set_idle:
            sandbox.idle_seconds = idle_seconds
        if labels is not None:
            sandbox.labels = dict(labels)
        self._arm(sandbox)

    # --- execute

    async def execute(
        self, sandbox: Sandbox, command: Command, execution_id: str | None = None, wait_seconds: float = 60
    ) -> tuple[Execution, bool]:
        """Starts a command; True when it is new. The execution goes on whatever becomes of the caller.

        Raises WrongState, Conflict, CapacityExceeded, InvalidRequest, or what the runtime raised.
        """
        sandbox.touch()
        backend = self.registry.get(sandbox.spec.runtime)
        command = self._complete(sandbox, command)
        check_command(command, backend.info.command_limits)
        if command.stdin.value == "open" and Capability.STDIN not in backend.info.capabilities:
            raise CapabilityMissing([Capability.STDIN], backend.info.name)
        await self._wait_settled(sandbox, wait_seconds)
        known = sandbox.executions.get(execution_id) if execution_id else None
        if known is not None:
            if known.command != command:
                raise Conflict(f"the id {known.id!r} is taken by another execution of this sandbox")
            await known.started.wait()
            return known, False
        if sandbox.state is not SandboxState.RUNNING or sandbox.handle is None or sandbox.ending is not None:
            raise WrongState(sandbox.state, f"the sandbox is {_describe_state(sandbox)}")
        if sandbox.running >= self.capacity.executions_running:
            raise CapacityExceeded("running executions in one sandbox", self.capacity.executions_running)
        if len(sandbox.executions) >= self.capacity.executions_kept:
            raise CapacityExceeded("executions in the life of one sandbox", self.capacity.executions_kept, 3600)
        self._check_spill()
        execution = self._begin(sandbox, sandbox.handle, command, execution_id)
        await execution.started.wait()
        if execution.failure is not None:
            sandbox.executions.pop(execution.id, None)
            raise execution.failure
        return execution, True

    def _complete(self, sandbox: Sandbox, command: Command) -> Command:
        return replace(command, env={**sandbox.spec.env, **command.env})

    def _begin(self, sandbox: Sandbox, handle: SandboxHandle, command: Command, execution_id: str | None) -> Execution:
        keep_first = command.on_output_limit is OnOutputLimit.KILL
        capacity = sandbox.spec.limits.output_bytes
        logs = Logs(
            OutputLog(capacity, keep_first=keep_first, open_spill=self._open_spill),
            OutputLog(capacity, keep_first=keep_first, open_spill=self._open_spill),
        )
        self._sequence += 1
        execution = Execution(execution_id or new_id("exe_"), sandbox.id, self._sequence, command, logs)
        sandbox.executions[execution.id] = execution
        self._spawn(self._run(sandbox, handle, execution, logs))
        return execution

    async def _run(self, sandbox: Sandbox, handle: SandboxHandle, execution: Execution, logs: Logs) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def start() -> ExecutionHandle:
            started = await handle.execute(execution.id, execution.command, logs)
            self._observer.execution_started(sandbox.spec.runtime, loop.time() - began)
            return started

        await execution.run(start)
        sandbox.touch()
        self._arm(sandbox)
        if execution.exit is not None and execution.failure is None:
            output = logs.stdout.total + logs.stderr.total
            self._observer.execution_ended(sandbox.spec.runtime, execution.exit.reason, output)

    async def kill_execution(self, execution: Execution) -> None:
        """Everything that it started is gone when this returns. Idempotent."""
        await execution.started.wait()
        await execution.end(ExitReason.KILLED, "the execution was deleted")
        await execution.wait()

    # --- the end

    async def destroy(self, sandbox: Sandbox, why: str = "the sandbox was deleted") -> None:
        """No process of the sandbox exists when this returns, whatever becomes of the caller. Idempotent."""
        if sandbox.state is SandboxState.DESTROYED:
            return
        if sandbox.ending is None:
            sandbox.ending = self._spawn(self._end(sandbox, why))
        ending = sandbox.ending
        await asyncio.shield(ending)

    async def _end(self, sandbox: Sandbox, why: str) -> None:
        try:
            if sandbox.timer is not None:
                sandbox.timer.cancel()
            if sandbox.boot is not None and not sandbox.boot.done():
                sandbox.boot.cancel()
                await settle(sandbox.boot)
            for execution in sandbox.executions.values():
                execution.mark(ExitReason.KILLED, why)
            if sandbox.watch is not None:
                sandbox.watch.cancel()
            if sandbox.handle is not None:
                await sandbox.handle.destroy()
            for execution in sandbox.executions.values():
                await execution.wait()
        except BaseException:
            sandbox.ending = None  # it may be tried again
            raise
        sandbox.state, sandbox.state_reason = SandboxState.DESTROYED, why
        sandbox.handle = None
        sandbox.settled.set()
        self._observer.sandbox_ended(sandbox.spec.runtime, "destroyed")
        self._let_go_of_output(sandbox)
        if self._records.get(sandbox.id) is sandbox:
            sandbox.timer = asyncio.get_running_loop().call_later(self.capacity.record_seconds, self._forget, sandbox)

    def _let_go_of_output(self, sandbox: Sandbox) -> None:
        """Open streams still get everything to their exit frame, for at most `stream_end_seconds`."""
        loop = asyncio.get_running_loop()
        for execution in sandbox.executions.values():
            for log in execution.logs.values():
                if execution.viewers:
                    loop.call_later(self.capacity.stream_end_seconds, log.discard)
                else:
                    log.discard()

    def _forget(self, sandbox: Sandbox) -> None:
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        if self._records.get(sandbox.id) is sandbox:
            del self._records[sandbox.id]

    async def _notice_loss(self, sandbox: Sandbox, handle: SandboxHandle) -> None:
        why = await handle.lost()
        sandbox.state, sandbox.state_reason = SandboxState.FAILED, why
        self._observer.sandbox_ended(sandbox.spec.runtime, "lost")
        await handle.destroy()
        sandbox.handle = None

    # --- the clock

    def _arm(self, sandbox: Sandbox) -> None:
        """One timer per sandbox, at the earlier of its two ends."""
        if sandbox.state is SandboxState.DESTROYED or sandbox.ending is not None:
            return
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        delay = max(0.0, self._seconds_left(sandbox))
        sandbox.timer = asyncio.get_running_loop().call_later(delay, self._expire, sandbox)

    def _seconds_left(self, sandbox: Sandbox) -> float:
        left = (sandbox.expires_at - now()).total_seconds()
        if sandbox.idle_seconds is not None and sandbox.running == 0:
            idle = (now() - sandbox.last_active_at).total_seconds()
            left = min(left, sandbox.idle_seconds - idle)
        return left

    def _expire(self, sandbox: Sandbox) -> None:
        if self._seconds_left(sandbox) > 0.0005:  # it was used, or an execution runs, since the timer was set
            self._arm(sandbox)
            return
        why = "its ttl passed" if now() >= sandbox.expires_at else "it was idle"
        self._spawn(self.destroy(sandbox, f"the sandbox expired: {why}"))

    # --- shutdown

    async def aclose(self) -> None:
        """Destroys everything, and waits for it."""
        self._closing = True
        await asyncio.gather(
            *(self.destroy(sandbox, "the service is stopping") for sandbox in self), return_exceptions=True
        )
        for sandbox in self:
            self._forget(sandbox)
        for task in tuple(self._tasks):
            task.cancel()
            await settle(task)

    def _spawn(self, coroutine: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]  # narrowed by every caller
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, BulkheadError):
            task.get_loop().call_exception_handler(
                {"message": "a background task failed", "exception": error, "task": task}
            )


def _describe(sandbox: Sandbox) -> str:
    return "a destroyed sandbox" if sandbox.state is SandboxState.DESTROYED else "a sandbox with another body"


def _describe_state(sandbox: Sandbox) -> str:
    if sandbox.ending is not None and sandbox.state is not SandboxState.DESTROYED:
        return "being destroyed"
    return f"{sandbox.state}: {sandbox.state_reason}" if sandbox.state_reason else str(sandbox.state)
