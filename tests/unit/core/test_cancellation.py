"""A client may hang up at any moment: at every turn of the loop the caller is cancelled, and nothing may leak.

`TURNS` is more than any of these calls takes, so the last cases run undisturbed.
"""

from __future__ import annotations

import asyncio

import pytest

from app.core.backend import settle
from app.core.models import Channel, ExecutionState, ExitReason, SandboxState
from app.core.tasks import Tasks
from tests.null_backend import Gate, NullBackend
from tests.unit.core.support import Core, cancelled_after, command, spec, steps, until

TURNS = range(16)


@pytest.mark.parametrize("turns", TURNS)
async def test_create_that_is_abandoned_at_any_turn_leaves_nothing(turns: int) -> None:
    async with Core() as core:
        sandbox, _ = core.sandboxes.create(spec())
        await cancelled_after(turns, core.sandboxes.wait_created(sandbox, 60))
        await sandbox.abandon()
        assert sandbox.state is SandboxState.DESTROYED
        assert core.backend.alive == []


@pytest.mark.parametrize("turns", TURNS)
async def test_create_with_a_chosen_id_survives_its_client_at_any_turn(turns: int) -> None:
    async with Core() as core:
        sandbox, _ = core.sandboxes.create(spec(), "mine")
        await cancelled_after(turns, core.sandboxes.wait_created(sandbox, 60))
        await sandbox.abandon()
        again, new = core.sandboxes.create(spec(), "mine")
        await core.sandboxes.wait_created(again, 60)
        assert (again, new, again.state) == (sandbox, False, SandboxState.RUNNING)
        assert core.backend.created == ["mine"]


@pytest.mark.parametrize("turns", TURNS)
async def test_abandon_that_is_itself_cancelled_still_destroys(turns: int) -> None:
    async with Core() as core:
        sandbox, _ = core.sandboxes.create(spec())
        await steps(2)
        await cancelled_after(turns, sandbox.abandon())
        if turns:
            await until(lambda: sandbox.state is SandboxState.DESTROYED)
            assert core.backend.alive == []


@pytest.mark.parametrize("turns", TURNS)
async def test_execution_goes_on_when_its_client_disconnects_at_any_turn(turns: int) -> None:
    async with Core() as core:
        sandbox = await core.create()
        await cancelled_after(turns, sandbox.execute(command("silent-then", "echo"), "e1"))
        await steps(10)
        if turns == 0:
            assert sandbox.executions == {}, "a call that never ran starts nothing"
            return
        execution = sandbox.executions["e1"]
        assert execution.state is ExecutionState.RUNNING
        core.backend.release("e1")
        await execution.wait()
        assert execution.exit is not None
        assert execution.exit.reason is ExitReason.EXITED
        assert core.backend.alive == [sandbox.id]
        await until(lambda: core.notes.executions == ["started", "exited 1"])


@pytest.mark.parametrize("turns", TURNS)
async def test_client_that_disconnects_while_it_waits_for_the_boot_starts_nothing(turns: int) -> None:
    async with Core() as core:
        core.backend.create_gate = Gate()
        sandbox, _ = core.sandboxes.create(spec())
        assert await cancelled_after(turns, sandbox.execute(command("echo")))
        core.backend.create_gate.open()
        await core.sandboxes.wait_created(sandbox, 60)
        assert sandbox.executions == {}


@pytest.mark.parametrize("turns", TURNS)
async def test_destroy_goes_on_when_its_client_disconnects_at_any_turn(turns: int) -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "daemon", "sleep")
        await cancelled_after(turns, sandbox.destroy())
        if turns:
            await until(lambda: sandbox.state is SandboxState.DESTROYED)
            assert core.backend.alive == []
            assert execution.exit is not None
            assert execution.exit.reason is ExitReason.KILLED
        await sandbox.destroy()
        assert core.notes.sandboxes == ["created", "destroyed"]


@pytest.mark.parametrize("turns", TURNS)
async def test_kill_goes_on_when_its_client_disconnects_at_any_turn(turns: int) -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "daemon", "sleep")
        await cancelled_after(turns, execution.kill())
        if turns:
            await until(lambda: core.backend.alive == [sandbox.id])
            await execution.wait()
            assert execution.exit is not None
            assert execution.exit.reason is ExitReason.KILLED
        await execution.kill()
        assert core.backend.alive == [sandbox.id]


@pytest.mark.parametrize("turns", TURNS)
async def test_stdin_counts_what_went_in_when_its_writer_disconnects_at_any_turn(turns: int) -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "silent-then", "cat", stdin=True)
        await cancelled_after(turns, execution.feed(b"abc"))
        await execution.feed(b"def")
        assert execution.stdin_bytes == len(core.program(execution)._stdin)
        await cancelled_after(turns, execution.end_stdin())
        core.backend.release(execution.id)
        if turns:
            await execution.wait()
            assert execution.logs[Channel.STDOUT].total == execution.stdin_bytes


@pytest.mark.parametrize("turns", TURNS)
async def test_stop_that_is_cancelled_at_any_turn_can_be_repeated(turns: int) -> None:
    async with Core() as core:
        sandbox = await core.create()
        await core.start(sandbox, "daemon", "sleep")
        await cancelled_after(turns, core.sandboxes.aclose())


@pytest.mark.parametrize("turns", TURNS)
async def test_backend_whose_create_is_cancelled_at_any_turn_keeps_nothing(turns: int) -> None:
    backend = NullBackend()
    cut = await cancelled_after(turns, backend.create("a", spec()))
    assert backend.alive == ([] if cut else ["a"])
    await backend.aclose()
    assert backend.alive == []


async def test_settle_waits_to_the_end_although_its_waiter_is_cancelled() -> None:
    gate = Gate()
    work = asyncio.create_task(gate.pass_through())
    waiting = asyncio.create_task(settle(work))
    await steps(2)
    for _ in range(3):
        waiting.cancel()
        await steps(2)
        assert not waiting.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.done()
    assert not work.cancelled()


async def test_closed_tasks_end_also_what_the_cancelled_ones_start() -> None:
    tasks = Tasks()
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)
            if name == "first":
                tasks.spawn(work("second"))
                await asyncio.sleep(0)

    tasks.spawn(work("first"))
    await steps(1)
    await tasks.aclose()
    assert ended[0] == "first"
    assert len(tasks) == 0
