"""How a sandbox begins and ends: its boot, its loss, its two clocks, its destruction."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta

from app.core.backend import SandboxHandle, settle
from app.core.commands import environment_bytes
from app.core.ended import EndedOutput
from app.core.errors import BackendFailure, BulkheadError
from app.core.models import ExitReason, SandboxState, now
from app.core.records import Capacity, Observer, Records, Sandbox
from app.core.registry import Registry
from app.core.tasks import Tasks

# A timer of the loop may come this much early: its clock and the wall clock are not the same.
EARLY_SECONDS = 0.0005
AT_ONCE = 500  # records whose output is given back in one turn of the loop: some 3 ms
RETRY_SECONDS = 5.0  # between attempts to destroy what is past its end


class Lifetimes:
    def __init__(
        self,
        registry: Registry,
        capacity: Capacity,
        observer: Observer,
        records: Records,
        tasks: Tasks,
        ended_output: EndedOutput,
    ) -> None:
        self._registry = registry
        self._capacity = capacity
        self._observer = observer
        self._records = records
        self._tasks = tasks
        self._ended_output = ended_output

    # --- the beginning

    def begin(self, sandbox: Sandbox) -> None:
        sandbox.boot = self._tasks.spawn(self._boot(sandbox))
        self.arm(sandbox)

    async def _boot(self, sandbox: Sandbox) -> None:
        """Cancelled only by `_end`, which then says what became of it."""
        began = time.perf_counter()
        try:
            handle = await self._registry.get(sandbox.spec.runtime).create(sandbox.id, sandbox.spec)
        except BulkheadError as error:
            self._boot_failed(sandbox, error)
        except Exception as error:  # a fault of ours must not leave a record that is `creating` for ever
            self._boot_failed(sandbox, BackendFailure(f"the runtime failed: {type(error).__name__}"))
            raise
        else:
            sandbox.handle = handle
            sandbox.state = SandboxState.RUNNING
            sandbox.expires_at = now() + timedelta(seconds=sandbox.ttl_seconds)
            sandbox.touch()
            sandbox.watch = self._tasks.spawn(self._notice_loss(sandbox, handle))
            self._observer.sandbox_created(sandbox.spec.runtime, time.perf_counter() - began)
            self.arm(sandbox)
            sandbox.settled.set()

    def _boot_failed(self, sandbox: Sandbox, error: BulkheadError) -> None:
        sandbox.failure = error
        sandbox.state, sandbox.state_reason = SandboxState.FAILED, str(error)
        self._observer.sandbox_ended(sandbox.spec.runtime, "create_failed")
        sandbox.settled.set()

    async def _notice_loss(self, sandbox: Sandbox, handle: SandboxHandle) -> None:
        why = await handle.lost()
        sandbox.state, sandbox.state_reason = SandboxState.FAILED, why
        sandbox.end_transfers()
        self._observer.sandbox_ended(sandbox.spec.runtime, "lost")
        await handle.destroy()
        sandbox.handle = None

    # --- the end

    async def destroy(self, sandbox: Sandbox, why: str) -> None:
        """No process of the sandbox exists when this returns, whatever becomes of the caller. Idempotent."""
        await asyncio.shield(self._begin_end(sandbox, why))

    def _begin_end(self, sandbox: Sandbox, why: str) -> asyncio.Task[None]:
        """From here on it is ending, before anybody else has a turn."""
        if sandbox.ending is None:  # it stays, so the second to come finds the end behind it
            sandbox.ending = self._tasks.spawn(self._end(sandbox, why))
        return sandbox.ending

    async def _end(self, sandbox: Sandbox, why: str) -> None:
        try:
            await self._end_handle(sandbox, why)
        except BaseException:
            self._end_failed(sandbox)
            raise
        if sandbox.state is not SandboxState.FAILED:  # else its end has been told
            self._observer.sandbox_ended(sandbox.spec.runtime, "destroyed")
        sandbox.state, sandbox.state_reason = SandboxState.DESTROYED, why
        sandbox.handle = None
        sandbox.settled.set()
        await self._let_go_of_output(sandbox)
        self._records.release(sandbox, environment_bytes(sandbox.spec.env))
        sandbox.spec = replace(sandbox.spec, env={})  # no answer tells it, and the record is kept for long
        self._records.retire(sandbox)
        if sandbox.fleeting:
            self._records.forget(sandbox)
        if sandbox in self._records:
            loop = asyncio.get_running_loop()
            seconds = self._capacity.record_seconds
            sandbox.forgotten_at = now() + timedelta(seconds=seconds)
            sandbox.timer = loop.call_later(seconds, self._records.forget, sandbox)

    async def _end_handle(self, sandbox: Sandbox, why: str) -> None:
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        if sandbox.boot is not None and not sandbox.boot.done():
            sandbox.boot.cancel()
            await settle(sandbox.boot)
        for execution in sandbox.executions.values():
            execution.mark(ExitReason.KILLED, why)
        sandbox.end_transfers()
        if sandbox.watch is not None:
            sandbox.watch.cancel()
        if sandbox.handle is not None:
            await sandbox.handle.destroy()
        for execution in tuple(sandbox.executions.values()):  # one that could not start leaves the record
            await execution.wait()

    def _end_failed(self, sandbox: Sandbox) -> None:
        """It may be tried again, and is, when its time is over."""
        sandbox.ending = None
        if sandbox.handle is not None and sandbox.state in {SandboxState.RUNNING, SandboxState.PAUSED}:
            sandbox.watch = self._tasks.spawn(self._notice_loss(sandbox, sandbox.handle))
        self.arm(sandbox, at_least=RETRY_SECONDS)

    async def _let_go_of_output(self, sandbox: Sandbox) -> None:
        """Open streams still get everything to their exit frame, for at most `stream_end_seconds`."""
        loop = asyncio.get_running_loop()
        for number, execution in enumerate(tuple(sandbox.executions.values())):
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            for log in execution.logs.values():
                if execution.viewers:
                    loop.call_later(self._capacity.stream_end_seconds, self._ended_output.discard, sandbox.id, log)
                else:
                    self._ended_output.discard(sandbox.id, log)

    # --- the clock

    def arm(self, sandbox: Sandbox, at_least: float = 0.0) -> None:
        """One timer per sandbox, at the earlier of its two ends."""
        if sandbox.ending is not None or sandbox not in self._records:
            return
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        delay = max(at_least, self._seconds_left(sandbox))
        sandbox.timer = asyncio.get_running_loop().call_later(delay, self._expire, sandbox)

    def _ttl_left(self, sandbox: Sandbox) -> float:
        """The ttl counts from `running`; before that the sandbox has `creating_seconds`."""
        if sandbox.state is SandboxState.CREATING:
            return self._capacity.creating_seconds - (now() - sandbox.created_at).total_seconds()
        return (sandbox.expires_at - now()).total_seconds()

    def _seconds_left(self, sandbox: Sandbox) -> float:
        left = self._ttl_left(sandbox)
        busy = sandbox.state is SandboxState.CREATING or sandbox.running or sandbox.transfers
        if sandbox.idle_seconds is not None and not busy:
            idle = (now() - sandbox.last_active_at).total_seconds()
            left = min(left, sandbox.idle_seconds - idle)
        return left

    def _expire(self, sandbox: Sandbox) -> None:
        if self._seconds_left(sandbox) > EARLY_SECONDS:  # it was used, or it runs something, since the timer was set
            self.arm(sandbox)
            return
        why = "its ttl passed" if self._ttl_left(sandbox) <= EARLY_SECONDS else "it was idle"
        if sandbox.state is SandboxState.CREATING:
            why = f"it was not running after {self._capacity.creating_seconds:g} seconds"
        self._begin_end(sandbox, f"the sandbox expired: {why}")
