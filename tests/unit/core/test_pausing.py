"""Pausing a sandbox and letting it go on, beside everything else that can happen to it."""

from __future__ import annotations

import asyncio

import pytest

from app.core.capabilities import Capability
from app.core.errors import BackendTimeout, UnsupportedByRuntime, WrongState
from app.core.executions import Execution
from app.core.models import Channel, ExecutionState, ExitReason, SandboxState
from app.core.sandbox import Sandbox
from tests.null_backend import CAPABILITIES, Gate, NullBackend
from tests.unit.core.support import Core, cancelled_after, command, spec, steps, text, until

SLOW = BackendTimeout("process", "its processes did not all stop within 2 seconds")


def total(execution: Execution) -> int:
    return execution.logs[Channel.STDOUT].total


async def paused(core: Core) -> Sandbox:
    sandbox = await core.create()
    await sandbox.pause()
    return sandbox


async def test_paused_sandbox_says_so_and_runs_again_after_resume() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "cat", stdin=True)
        for _ in range(2):
            await sandbox.pause()
            assert sandbox.state is SandboxState.PAUSED
        await execution.feed(b"kept")
        await steps(20)
        assert text(execution) == b""
        assert execution.state is ExecutionState.RUNNING
        for _ in range(2):
            await sandbox.resume()
            assert sandbox.state is SandboxState.RUNNING
        await until(lambda: text(execution) == b"kept")


async def test_resume_of_one_that_was_never_paused_is_nothing() -> None:
    async with Core() as core:
        sandbox = await core.create()
        await sandbox.resume()
        assert sandbox.state is SandboxState.RUNNING


async def test_paused_sandbox_starts_nothing_and_can_be_changed() -> None:
    async with Core() as core:
        sandbox = await paused(core)
        with pytest.raises(WrongState) as refusal:
            await sandbox.execute(command("echo"))
        assert refusal.value.state == "paused"
        assert sandbox.executions == {}
        sandbox.update(ttl_seconds=5, labels={"a": "b"})
        assert (sandbox.ttl_seconds, sandbox.labels) == (5, {"a": "b"})
        await sandbox.resume()
        assert (await core.start(sandbox, "echo", "x")).failure is None


async def test_a_start_while_it_is_being_paused_is_refused_and_leaves_no_record() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.pause_gate = gate = Gate()
        pausing = asyncio.ensure_future(sandbox.pause())
        await gate.reached.wait()
        with pytest.raises(WrongState) as refusal:
            await sandbox.execute(command("echo"))
        assert refusal.value.state == "paused"
        assert sandbox.executions == {}
        gate.open()
        await pausing


@pytest.mark.parametrize("change", ["pause", "resume"])
async def test_creating_failed_and_destroyed_ones_are_in_the_wrong_state(change: str) -> None:
    async with Core() as core:
        destroyed, lost = await core.create(), await core.create()
        await destroyed.destroy()
        await core.backend.lose(lost.id)
        await until(lambda: lost.state is SandboxState.FAILED)
        core.backend.create_gate = Gate()
        creating, _ = core.sandboxes.create(spec())
        for sandbox, state in ((creating, "creating"), (destroyed, "destroyed"), (lost, "failed")):
            with pytest.raises(WrongState) as refusal:
                await getattr(sandbox, change)()
            assert refusal.value.state == state
        core.backend.create_gate.open()


@pytest.mark.parametrize("change", ["pause", "resume"])
async def test_runtime_without_the_capability_is_not_even_asked(change: str) -> None:
    backend = NullBackend(capabilities=CAPABILITIES - {Capability.PAUSE})
    async with Core(backend=backend) as core:
        sandbox = await core.create()
        backend.pause_gate = Gate()
        with pytest.raises(UnsupportedByRuntime):
            await getattr(sandbox, change)()
        assert not backend.pause_gate.reached.is_set()
        assert sandbox.state is SandboxState.RUNNING


async def test_pause_that_fails_leaves_it_running_and_can_be_repeated() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.pause_error = SLOW
        with pytest.raises(BackendTimeout):
            await sandbox.pause()
        assert sandbox.state is SandboxState.RUNNING
        assert (await core.start(sandbox, "echo", "x")).failure is None
        core.backend.pause_error = None
        await sandbox.pause()
        core.backend.pause_error = SLOW
        with pytest.raises(BackendTimeout):
            await sandbox.resume()
        assert str(sandbox.state) == "paused"
        core.backend.pause_error = None


async def test_changes_come_in_the_order_of_the_calls_and_outlive_their_clients() -> None:
    async with Core() as core:
        sandbox = await core.create()
        for number in range(8):
            assert await cancelled_after(number, sandbox.pause()) in (True, False)
            calls = [sandbox.resume(), sandbox.pause()]
            await asyncio.gather(*calls)
            assert str(sandbox.state) == "paused"
            await sandbox.resume()
            assert str(sandbox.state) == "running"


async def test_destroy_does_not_wait_for_a_pause_which_then_says_what_became_of_it() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.pause_gate = gate = Gate()
        pausing = asyncio.ensure_future(sandbox.pause())
        behind = asyncio.ensure_future(sandbox.resume())
        await gate.reached.wait()
        await sandbox.destroy()
        for call in (pausing, behind):
            with pytest.raises(WrongState) as refusal:
                await call
            assert refusal.value.state == "destroyed"
        assert sandbox.state is SandboxState.DESTROYED


async def test_paused_sandbox_is_destroyed_with_all_that_is_in_it() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "daemon", "sleep")
        await sandbox.pause()
        await sandbox.destroy()
        assert (sandbox.state, core.backend.alive) == (SandboxState.DESTROYED, [])
        assert execution.exit is not None
        assert execution.exit.reason is ExitReason.KILLED


async def test_execution_of_a_paused_sandbox_is_killed_and_its_neighbour_stays_as_it_is() -> None:
    async with Core() as core:
        sandbox = await core.create()
        first, second = await core.start(sandbox, "spew"), await core.start(sandbox, "spew")
        await sandbox.pause()
        await first.kill()
        assert first.exit is not None
        assert (first.exit.reason, sandbox.state) == (ExitReason.KILLED, SandboxState.PAUSED)
        printed = total(second)
        await steps(20)
        assert total(second) == printed


async def test_an_execution_times_out_while_it_is_paused() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "sleep", timeout_seconds=0.02)
        await sandbox.pause()
        await execution.wait()
        assert execution.exit is not None
        assert (execution.exit.reason, sandbox.state) == (ExitReason.TIMEOUT, SandboxState.PAUSED)


async def test_ttl_goes_on_while_paused() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(ttl_seconds=1))
        execution = await core.start(sandbox, "sleep")
        await sandbox.pause()
        await execution.wait()
        await sandbox.destroy()
        assert sandbox.state_reason == "the sandbox expired: its ttl passed"


async def test_paused_sandbox_is_idle_only_without_an_execution() -> None:
    async with Core() as core:
        empty, busy = [await core.create() for _ in range(2)]
        execution = await core.start(busy, "sleep")
        for sandbox in (empty, busy):
            await sandbox.pause()
            sandbox.update(set_idle=True, idle_seconds=0.05)
        while empty.state is not SandboxState.DESTROYED:  # noqa: ASYNC110 - a record has no event for its end
            await asyncio.sleep(0.005)
        assert empty.state_reason == "the sandbox expired: it was idle"
        assert (busy.state, execution.exit) == (SandboxState.PAUSED, None)


async def test_loss_while_paused_is_told() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "sleep")
        await sandbox.pause()
        await core.backend.lose(sandbox.id, "the launcher ended")
        await until(lambda: sandbox.over)
        assert (sandbox.state, sandbox.state_reason) == (SandboxState.FAILED, "the launcher ended")
        assert execution.exit is not None
        assert execution.exit.reason is ExitReason.LOST


async def test_a_destroy_that_fails_leaves_it_paused_and_its_loss_is_still_noticed() -> None:
    async with Core() as core:
        sandbox = await paused(core)
        core.backend.destroy_error = SLOW
        with pytest.raises(BackendTimeout):
            await sandbox.destroy()
        assert sandbox.state is SandboxState.PAUSED
        core.backend.destroy_error = None
        await core.backend.lose(sandbox.id)
        await until(lambda: sandbox.state is SandboxState.FAILED)
