"""One sandbox: its state, its executions, its lifetime and idle time, and its end. Nothing else changes any of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from app.core.backend import Backend, SandboxHandle, settle
from app.core.budget import Account
from app.core.capabilities import Capability
from app.core.commands import (
    check_idle_counts,
    check_start,
    environment_bytes,
    rules_bytes,
    secret_bytes,
    with_environment,
)
from app.core.errors import BackendFailure, BackendTimeout, BulkheadError, Conflict, UnsupportedByRuntime, WrongState
from app.core.executions import Execution, Executions
from app.core.lifecycle import ALIVE, DESTROYED, Event, Lifecycle
from app.core.models import Command, ExitReason, IdleCounts, ResourceUsage, SandboxSpec, SandboxState, now
from app.core.network_log import NetworkLog
from app.core.network_rules import NetworkRule
from app.core.policy import Network
from app.core.resources import Resources
from app.core.timeslices import TimeSlices

# A timer of the loop may come this much early: its clock and the wall clock are not the same.
EARLY_SECONDS = 0.0005
_EXPIRED = "the sandbox expired: "
_WAS = "the sandbox was "
RETRY_SECONDS = 5.0  # between attempts to destroy what is past its end

WAIT_SECONDS = 60.0  # for a sandbox that is still `creating`

_RUNNING = (SandboxState.RUNNING,)


class Sandbox:
    """Made by `Sandboxes.create`. Its record is kept for a while after its end.

    `named`: a client chose the id. `ephemeral`: no record of it is kept after its end. `retire` is called once, when it
    is destroyed.
    """

    def __init__(
        self,
        sandbox_id: str,
        spec: SandboxSpec,
        backend: Backend,
        resources: Resources,
        retire: Callable[[Sandbox], None],
        *,
        named: bool,
        ephemeral: bool = False,
    ) -> None:
        self.id = sandbox_id
        self.client = spec.client
        self.sequence = resources.next_sequence()
        self.named = named
        self.ephemeral = ephemeral
        self.commands = Account(resources.commands, sandbox_id)  # bytes of what is kept of requests and events
        self._backend = backend
        self._resources = resources
        self._retire = retire
        self._spec = spec
        self._labels = dict(spec.labels)
        self._ttl_seconds, self._idle_seconds = spec.ttl_seconds, spec.idle_seconds
        self._idle_counts = spec.idle_counts
        self.created_at = self._last_active_at = now()
        self._expires_at: datetime = self.created_at + timedelta(seconds=spec.ttl_seconds)
        self._lifecycle = Lifecycle()
        self._failure: BulkheadError | None = None
        self._handle: SandboxHandle | None = None
        self._network_log: NetworkLog | None = None
        self._network = spec.policy.network
        self._executions = Executions(sandbox_id, spec, backend.info, resources, self.commands, self._used)
        self._transfers: set[asyncio.Timeout] = set()  # operations on its files; each with what ends it
        self._settled = asyncio.Event()  # no longer `creating`
        self._change = asyncio.Lock()  # one pause or resume at a time, in the order of the calls
        self._network_change = asyncio.Lock()  # likewise
        self._boot: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None  # stays when it succeeded
        self._timer: asyncio.TimerHandle | None = None
        self._free_at: datetime | None = None
        self._is_forgotten = False

    # --- what it is

    @property
    def spec(self) -> SandboxSpec:
        """What was asked for. After the end it has no environment, and no values of secrets."""
        return self._spec

    @property
    def network(self) -> Network:
        """As it was changed last."""
        return self._network

    @property
    def state(self) -> SandboxState:
        return self._lifecycle.state

    @property
    def state_reason(self) -> str | None:
        return self._lifecycle.reason

    @property
    def failure(self) -> BulkheadError | None:
        """Why it could not be created."""
        return self._failure

    @property
    def labels(self) -> Mapping[str, str]:
        return self._labels

    @property
    def ttl_seconds(self) -> float:
        return self._ttl_seconds

    @property
    def idle_seconds(self) -> float | None:
        return self._idle_seconds

    @property
    def idle_counts(self) -> IdleCounts:
        return self._idle_counts

    @property
    def last_active_at(self) -> datetime:
        return self._last_active_at

    @property
    def expires_at(self) -> datetime:
        return self._expires_at

    @property
    def free_at(self) -> datetime | None:
        """When its record is dropped and its id is free again. None before its end."""
        return self._free_at

    @property
    def receipt(self) -> Mapping[str, Any] | None:
        """What is in force (`SandboxHandle.receipt`). None when there is no sandbox yet, or none any more."""
        return None if self._handle is None else self._handle.receipt

    @property
    def network_log(self) -> NetworkLog | None:
        """Kept after the end. None without a network of the mode `proxy`."""
        return self._network_log

    @property
    def executions(self) -> Mapping[str, Execution]:
        """Oldest first."""
        return self._executions.known

    @property
    def running(self) -> int:
        """Executions that run."""
        return self._executions.running

    @property
    def over(self) -> bool:
        """Whether only this record of it is left."""
        return self.state is DESTROYED or (self.state is SandboxState.FAILED and self._handle is None)

    @property
    def ends(self) -> bool:
        """Whether its end has begun or is over."""
        return self._lifecycle.is_ending or self.state is DESTROYED

    # --- is it there

    def _require(self, states: tuple[SandboxState, ...]) -> SandboxHandle:
        """The one place that checks whether the sandbox can be used. Raises WrongState."""
        if self._lifecycle.state not in states or self._handle is None or self._lifecycle.is_ending:
            raise self._wrong_state()
        return self._handle

    def _wrong_state(self) -> WrongState:
        if self._lifecycle.state is not SandboxState.DESTROYED:
            return WrongState(self._lifecycle.state, f"the sandbox is {self._lifecycle.describe()}")
        why = (self._lifecycle.reason or "it was destroyed").removeprefix(_EXPIRED)
        why = f"it was {why.removeprefix(_WAS)}" if why.startswith(_WAS) else why
        return WrongState(SandboxState.DESTROYED, f"the sandbox has ended: {why}")

    def check_running(self) -> None:
        """Raises WrongState unless it runs and its end has not begun."""
        self._require(_RUNNING)

    async def wait(self, seconds: float) -> None:
        """Returns when it is no longer `creating`, or after `seconds`."""
        if self._settled.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self._settled.wait()
        except TimeoutError:
            return

    # --- the beginning

    def begin(self) -> None:
        self._boot = self._resources.tasks.spawn(self._create())
        self._arm()

    async def _create(self) -> None:
        """Only `_carry_out_end` cancels this, and then reports how it ended."""
        began = time.perf_counter()
        try:
            handle = await self._backend.create(self.id, self._spec)
        except BulkheadError as error:
            self._create_failed(error)
        except Exception as error:  # a fault of ours must not leave a record that is `creating` for ever
            self._create_failed(BackendFailure(f"the runtime failed: {type(error).__name__}"))
            raise
        else:
            self._started(handle, time.perf_counter() - began)

    def _started(self, handle: SandboxHandle, seconds: float) -> None:
        self._handle = handle
        self._network_log = handle.network_log
        if self._network_log is not None:
            self._network_log.charge(self.commands)
        self._lifecycle.apply(Event.STARTED)
        self._last_active_at = now()
        self._expires_at = self._last_active_at + timedelta(seconds=self._ttl_seconds)
        self._watch_for_loss(handle)
        self._resources.observer.sandbox_created(self._spec.runtime, seconds)
        self._arm()
        self._settled.set()

    def _create_failed(self, error: BulkheadError) -> None:
        self._failure = error
        self._lifecycle.apply(Event.CREATE_FAILED, str(error))
        self._resources.observer.sandbox_ended(self._spec.runtime, "create_failed")
        self._settled.set()

    # --- the loss

    def _watch_for_loss(self, handle: SandboxHandle) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._resources.tasks.spawn(self._notice_loss(handle))

    async def _notice_loss(self, handle: SandboxHandle) -> None:
        why = await handle.lost()
        self._lifecycle.apply(Event.LOST, why)
        self._end_transfers()
        self._resources.observer.sandbox_ended(self._spec.runtime, "lost")
        await handle.destroy()
        self._handle = None
        self._close_network_log()

    # --- changes
    #
    # Neither of its clocks stops in a pause, nor those of its executions: each ends what is paused as it would what
    # runs. An execution that is paused counts as running, so that its sandbox is not idle.

    async def pause(self) -> None:
        """When this returns, no process of it runs. Idempotent. Goes on even if the caller is cancelled. Raises
        UnsupportedByRuntime, WrongState (it is being created, or has ended), or what the runtime raised: then it runs
        as before.
        """
        await self._change_to(Event.PAUSED)

    async def resume(self) -> None:
        """Idempotent. Raises as `pause`."""
        await self._change_to(Event.RESUMED)

    async def _change_to(self, event: Event) -> None:
        info = self._backend.info
        if Capability.PAUSE not in info.capabilities:
            raise UnsupportedByRuntime(Capability.PAUSE, info.name)
        await asyncio.shield(self._resources.tasks.spawn(self._carry_out_change(event)))

    async def _carry_out_change(self, event: Event) -> None:
        """Asks the runtime even when the record has the state already, as the runtime may have changed it without a
        confirmation."""
        async with self._change:
            handle = self._require(ALIVE)
            await (handle.pause() if event is Event.PAUSED else handle.resume())
            self._require(ALIVE)  # its end does not wait for this
            self._lifecycle.apply(event)

    async def change_network(self, rules: Sequence[NetworkRule]) -> None:
        """Replaces the rules of a network of the mode `proxy`. Then no connection is open that they do not permit. Of
        several calls at once the last one holds. Goes on even if the caller is cancelled. Raises Conflict, WrongState,
        CapacityExceeded, or what the runtime raised: then the old rules hold. After BackendTimeout the new ones do.
        """
        self.touch()
        await asyncio.shield(self._resources.tasks.spawn(self._carry_out_network_change(tuple(rules))))

    async def _carry_out_network_change(self, rules: tuple[NetworkRule, ...]) -> None:
        async with self._network_change:
            handle = self._require(ALIVE)
            if self._network.mode != "proxy":
                mode = self._network.mode
                raise Conflict(f"the sandbox has the network mode {mode!r}; only rules of the mode 'proxy' can change")
            taken = rules_bytes(rules)
            # Those of the create stay in the record, whatever is in force.
            freed = 0 if self._network is self._spec.policy.network else rules_bytes(self._network.rules)
            self.commands.take(taken)
            try:
                await handle.change_network(rules)
            except BackendTimeout:
                self._take_rules(rules, freed)
                raise
            except BaseException:
                self.commands.give_back(taken)
                raise
            self._take_rules(rules, freed)
            self._require(ALIVE)  # its end does not wait for this

    def _take_rules(self, rules: tuple[NetworkRule, ...], freed: int) -> None:
        self._network = replace(self._network, rules=rules)
        self.commands.give_back(freed)

    def check_update(self, idle_counts: IdleCounts | None = None) -> None:
        """Raises what `update` would raise."""
        check_idle_counts(idle_counts, self._backend.info)
        if self.ends or self._lifecycle.state is SandboxState.FAILED:
            raise self._wrong_state()

    def update(
        self,
        *,
        ttl_seconds: float | None = None,
        idle_seconds: float | None = None,
        set_idle: bool = False,
        idle_counts: IdleCounts | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Raises WrongState on a sandbox that has ended, CapabilityMissing."""
        self.check_update(idle_counts)
        self.touch()
        if ttl_seconds is not None:
            self._ttl_seconds = ttl_seconds
            self._expires_at = now() + timedelta(seconds=ttl_seconds)
        if set_idle:
            self._idle_seconds = idle_seconds
        if idle_counts is not None:
            self._idle_counts = idle_counts
        if labels is not None:
            self._labels = dict(labels)
        self._arm()

    # --- its use

    def touch(self) -> None:
        """Counts as activity."""
        self._last_active_at = now()

    def _used(self) -> None:
        """Called when a use of the sandbox is over."""
        self.touch()
        self._arm()

    async def usage(self) -> ResourceUsage:
        """Raises WrongState, BackendFailure."""
        return await self._require(ALIVE).usage()

    async def execute(
        self, command: Command, execution_id: str | None = None, creating_seconds: float = WAIT_SECONDS
    ) -> tuple[Execution, bool]:
        """Starts a command. Returns True when it is new. Waits for a sandbox that is `creating`. The execution goes on
        even if the caller is cancelled.

        Raises WrongState, Conflict, CapacityExceeded, InvalidRequest, or what the runtime raised.
        """
        self.touch()
        command = with_environment(command, self._spec)
        check_start(command, self._backend.info)
        await self.wait(creating_seconds)
        execution = self.executions.get(execution_id) if execution_id else None
        new = execution is None
        if execution is None:
            execution = self._executions.start(self._require(_RUNNING), command, execution_id)
            if self._network_log is not None:
                self._network_log.began(execution.id)
        elif not execution.repeats(command, with_env=self.state is not DESTROYED):
            raise Conflict(f"the id {execution.id!r} is taken by another execution of this sandbox")
        await execution.started.wait()
        if execution.failure is not None:
            raise execution.failure
        return execution, new

    @asynccontextmanager
    async def transferring(self) -> AsyncIterator[SandboxHandle]:
        """A block for one operation on its files, in this task. It keeps the sandbox from being idle. Raises
        WrongState. When the sandbox ends first, the block is cancelled at once, and WrongState is raised."""
        handle = self._require(_RUNNING)
        end = asyncio.timeout(None)
        try:
            async with end:
                self._transfers.add(end)
                try:
                    yield handle
                finally:
                    self._transfers.discard(end)
        except TimeoutError:
            if not end.expired():
                raise
            raise self._wrong_state() from None
        finally:
            self._used()

    def _end_transfers(self) -> None:
        at_once = asyncio.get_running_loop().time()
        for transfer in tuple(self._transfers):
            if not transfer.expired():
                transfer.reschedule(at_once)

    # --- the end

    async def destroy(self, why: str = "the sandbox was deleted") -> None:
        """When this returns, no process of the sandbox exists. Goes on even if the caller is cancelled. Idempotent."""
        await asyncio.shield(self._begin_end(why))

    async def abandon(self) -> None:
        """The client that asked for it disconnected: without a chosen id nobody can ever find it again. (With an
        idempotency key nobody disconnects: api/http/idempotency.py.)"""
        if not self.named:
            await self.destroy("the client disconnected before it was told the sandbox's id")

    def _begin_end(self, why: str) -> asyncio.Task[None]:
        """From here on the sandbox is ending. No other task runs before this is set."""
        if self._end is None:  # it stays, so the second to come finds the end behind it
            self._lifecycle.apply(Event.END_BEGUN)
            self._end = self._resources.tasks.spawn(self._carry_out_end(why))
        return self._end

    async def _carry_out_end(self, why: str) -> None:
        try:
            await self._end_handle(why)
        except BaseException:
            self._end_failed()
            raise
        if self._lifecycle.state is not SandboxState.FAILED:  # else its end has been told
            self._resources.observer.sandbox_ended(self._spec.runtime, "destroyed")
        self._lifecycle.apply(Event.DESTROYED, why)
        self._handle = None
        self._close_network_log()
        self._settled.set()
        await self._let_go_of_output()
        self.commands.give_back(environment_bytes(self._spec.env) + secret_bytes(self._spec))
        secrets = tuple(secret.after_end() for secret in self._spec.secrets)
        self._spec = replace(self._spec, env={}, secrets=secrets)  # no answer tells more, and records are kept for long
        self._retire(self)

    def _close_network_log(self) -> None:
        if self._network_log is not None:
            self._network_log.close()

    async def _end_handle(self, why: str) -> None:
        self._disarm()
        if self._boot is not None and not self._boot.done():
            self._boot.cancel()
            await settle(self._boot)
        for execution in self.executions.values():
            execution.mark(ExitReason.KILLED, why)
        self._end_transfers()
        if self._watch is not None:
            self._watch.cancel()
        if self._handle is not None:
            await self._handle.destroy()
        for execution in tuple(self.executions.values()):  # one that could not start leaves the record
            await execution.wait()

    def _end_failed(self) -> None:
        """The end failed. It may be tried again, and it is when the sandbox's time is over."""
        self._end = None
        self._lifecycle.apply(Event.END_FAILED)
        if self._handle is not None and self._lifecycle.state in ALIVE:
            self._watch_for_loss(self._handle)
        self._arm(at_least=RETRY_SECONDS)

    async def _let_go_of_output(self) -> None:
        """Drops the output, after open streams had at most `stream_end_seconds` to read it to their exit frame."""
        loop = asyncio.get_running_loop()
        ended_output, seconds = self._resources.ended_output, self._resources.capacity.stream_end_seconds
        slices = TimeSlices.of_loop()
        for execution in tuple(self.executions.values()):
            if slices.over:
                await slices.next()
            for log in execution.logs.values():
                if execution.viewers:
                    loop.call_later(seconds, ended_output.discard, self.id, log)
                else:
                    ended_output.discard(self.id, log)

    # --- the clock

    def _arm(self, at_least: float = 0.0) -> None:
        """Sets the one timer of the sandbox to the earlier of its two time limits."""
        if self._end is not None or self._is_forgotten:
            return
        self._disarm()
        delay = max(at_least, self._seconds_left())
        self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ttl_left(self) -> float:
        """The ttl counts from `running`; before that the sandbox has `creating_seconds`."""
        if self._lifecycle.state is SandboxState.CREATING:
            return self._resources.capacity.creating_seconds - (now() - self.created_at).total_seconds()
        return (self._expires_at - now()).total_seconds()

    def _seconds_left(self) -> float:
        left = self._ttl_left()
        if self._idle_seconds is None or self._is_busy:
            return left
        idle = (now() - self._last_active_at).total_seconds()
        return min(left, self._idle_seconds - idle)

    @property
    def _is_busy(self) -> bool:
        """Whether something keeps it from being idle."""
        return bool(self._lifecycle.state is SandboxState.CREATING or self.running or self._transfers)

    def _expire(self) -> None:
        if self._seconds_left() > EARLY_SECONDS:  # it was used, or it runs something, since the timer was set
            self._arm()
            return
        idle = self._ttl_left() > EARLY_SECONDS
        if idle and self._idle_counts is IdleCounts.PROCESSES:
            self._resources.tasks.spawn(self._end_without_processes())
            return
        why = "it was idle" if idle else "its ttl passed"
        if self._lifecycle.state is SandboxState.CREATING:
            why = f"its boot took more than {self._resources.capacity.creating_seconds:g} seconds"
        self._begin_end(f"{_EXPIRED}{why}")

    async def _end_without_processes(self) -> None:
        """Ends an idle sandbox without processes. Living processes count as a use at this moment, and so does an
        unknown number."""
        try:
            processes = (await self.usage()).processes
        except BulkheadError:  # it has ended, or its runtime is away for a while
            self._ask_again_later()
            return
        if processes != 0:
            self.touch()
            self._ask_again_later()
        elif self._seconds_left() > EARLY_SECONDS:  # somebody came meanwhile
            self._arm()
        else:
            self._begin_end(f"{_EXPIRED}it was idle, and no process of it lived")

    def _ask_again_later(self) -> None:
        """However short its idle time is: each question is work for the launcher. The ttl ends it in time."""
        self._arm(at_least=min(RETRY_SECONDS, self._ttl_left()))

    # --- its record

    def forget_later(self, forget: Callable[[Sandbox], None]) -> None:
        """Keeps its record for the operator's time from now on."""
        seconds = self._resources.capacity.record_seconds
        self._free_at = now() + timedelta(seconds=seconds)
        self._timer = asyncio.get_running_loop().call_later(seconds, forget, self)

    def forgotten(self) -> None:
        """Its record was dropped, so its time limits no longer run."""
        self._is_forgotten = True
        self._disarm()
        self.commands.close()
