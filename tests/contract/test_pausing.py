"""The rules of `pause` and `resume` in `app/core/backend.py`, against every backend of `kinds.py`."""

from __future__ import annotations

import asyncio

import pytest

from app.core.backend import Logs
from app.core.capabilities import Capability
from app.core.errors import BulkheadError, UnsupportedByRuntime, WrongState
from app.core.models import ExitReason
from app.core.output import OutputLog
from tests.contract.kinds import Kind
from tests.contract.test_backend import MIB, Room, Run, opened, promised, room, turns


async def spewing(sandbox: Room) -> Run:
    """It prints without end; the oldest is dropped."""
    run = await sandbox.run(sandbox.kind.programs.spew(), logs=Logs(OutputLog(MIB), OutputLog(MIB)))
    await grown(run, 0)
    return run


async def grown(run: Run, beyond: int) -> None:
    changed = asyncio.Event()
    run.logs.stdout.watch(changed.set)
    while run.logs.stdout.total <= beyond:
        changed.clear()
        await changed.wait()
    run.logs.stdout.unwatch(changed.set)


async def still(run: Run) -> int:
    """What it had printed, once that is read and no more comes."""
    total = -1
    while total != run.logs.stdout.total:
        total = run.logs.stdout.total
        await asyncio.sleep(0.1)
    return total


async def test_a_runtime_that_cannot_pause_says_so(kind: Kind) -> None:
    async with room(kind) as sandbox:
        if Capability.PAUSE in sandbox.backend.info.capabilities:
            return
        for change in (sandbox.handle.pause, sandbox.handle.resume):
            with pytest.raises(UnsupportedByRuntime):
                await change()


async def test_paused_program_stops_where_it_is_and_goes_on_from_there(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        run = await spewing(sandbox)
        for _ in range(3):
            await sandbox.handle.pause()
            printed = await still(run)
            await sandbox.handle.resume()
            await grown(run, printed)


async def test_both_are_idempotent_also_at_the_same_time(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        await sandbox.handle.resume()
        run = await spewing(sandbox)
        await asyncio.gather(*(sandbox.handle.pause() for _ in range(3)))
        await sandbox.handle.pause()
        printed = await still(run)
        await asyncio.gather(*(sandbox.handle.resume() for _ in range(3)))
        await grown(run, printed)


async def test_paused_sandbox_starts_nothing_until_it_is_resumed(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        pausing = asyncio.ensure_future(sandbox.handle.pause())
        await turns(1)
        for _ in range(2):
            with pytest.raises(WrongState) as refusal:
                await sandbox.run(kind.programs.exit(0))
            assert refusal.value.state == "paused"
            await pausing
        await sandbox.handle.resume()
        assert (await (await sandbox.run(kind.programs.exit(3))).end()).code == 3


async def test_what_was_being_started_has_started_and_ends_after_the_resume(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        for number in range(kind.turns):
            starting = [asyncio.ensure_future(sandbox.run(kind.programs.exit(n))) for n in range(3)]
            await turns(number)
            await sandbox.handle.pause()
            runs = [call.result() for call in await _all(starting) if call.exception() is None]
            await sandbox.handle.resume()
            assert {(await run.end()).reason for run in runs} <= {ExitReason.EXITED}


async def _all(calls: list[asyncio.Task[Run]]) -> list[asyncio.Task[Run]]:
    await asyncio.wait(calls)
    assert all(isinstance(call.exception(), WrongState | None) for call in calls)
    return calls


async def test_signals_are_kept_for_what_is_paused(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        run = await sandbox.run(kind.programs.trap_usr1())
        await run.saw(b"ready\n")
        await sandbox.handle.pause()
        await run.handle.signal(10)
        await still(run)
        assert run.out == b"ready\n"
        await sandbox.handle.resume()
        await run.saw(b"SIGUSR1\n")


async def test_stdin_is_kept_for_what_is_paused(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        run = await sandbox.run(kind.programs.cat(), stdin=True)
        await sandbox.handle.pause()
        await run.handle.write(b"one ")
        await run.handle.write(b"two")
        await run.handle.close_stdin()
        assert await still(run) == 0
        await sandbox.handle.resume()
        assert (await run.end()).code == 0
        assert run.out == b"one two"


async def test_kill_ends_what_is_paused_and_its_neighbours_stay_as_they_are(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        run, other = await spewing(sandbox), await spewing(sandbox)
        daemon = await sandbox.run(kind.programs.daemon(0))
        await daemon.end()
        await sandbox.handle.pause()
        printed = await still(other)
        async with asyncio.timeout(60):
            await asyncio.gather(run.handle.kill(), daemon.handle.kill())
            ended = await run.end()
        assert (ended.reason, ended.signal) == (ExitReason.SIGNALED, "SIGKILL")
        assert await still(other) == printed
        if kind.processes is not None:
            assert await sandbox.processes() == 1
        await sandbox.handle.resume()
        await grown(other, printed)


async def test_destroy_of_a_paused_sandbox_leaves_nothing_and_every_wait_has_an_answer(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        runs = [await spewing(sandbox), await sandbox.run(kind.programs.daemon(0))]
        await runs[1].end()
        await sandbox.handle.pause()
        async with asyncio.timeout(60):
            await sandbox.handle.destroy()
        assert kind.left(sandbox.backend) == []
        assert (await runs[0].end()).signal == "SIGKILL"


async def test_destroy_during_a_pause_ends_both(kind: Kind) -> None:
    async with opened(kind) as backend:
        promised(backend, Capability.PAUSE)
        for number in range(kind.turns):
            sandbox = Room(kind, backend, f"sbx_{number}", await backend.create(f"sbx_{number}", kind.spec))
            run = await spewing(sandbox)
            pausing = asyncio.ensure_future(sandbox.handle.pause())
            await turns(number)
            async with asyncio.timeout(60):
                await sandbox.handle.destroy()
                await asyncio.wait([pausing])
                await run.end()
            assert isinstance(pausing.exception(), WrongState | None)
            assert kind.left(backend) == []


async def test_pause_that_is_cancelled_at_any_turn_can_be_taken_back(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        run = await spewing(sandbox)
        for number in range(kind.turns):
            pausing = asyncio.ensure_future(sandbox.handle.pause())
            await turns(number)
            pausing.cancel()
            await asyncio.wait([pausing])
            await sandbox.handle.resume()
            await grown(run, run.logs.stdout.total)


async def test_a_sandbox_that_is_gone_is_neither_paused_nor_resumed(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        await sandbox.handle.destroy()
        for change in (sandbox.handle.pause, sandbox.handle.resume):
            with pytest.raises(WrongState):
                await change()


async def test_loss_while_paused_is_told_and_leaves_nothing(kind: Kind) -> None:
    if kind.lose is None:
        pytest.skip(f"{kind.name} has no way to lose a sandbox")
    async with room(kind, Capability.PAUSE) as sandbox:
        run = await spewing(sandbox)
        await sandbox.handle.pause()
        async with asyncio.timeout(60):
            await kind.lose(sandbox.backend, sandbox.id)
            assert await sandbox.handle.lost()
            assert (await run.end()).reason is ExitReason.LOST
        with pytest.raises(BulkheadError):
            await sandbox.handle.resume()
        await sandbox.handle.destroy()
        assert kind.left(sandbox.backend) == []


async def test_closing_the_backend_ends_what_is_paused(kind: Kind) -> None:
    async with room(kind, Capability.PAUSE) as sandbox:
        await spewing(sandbox)
        await sandbox.handle.pause()
        async with asyncio.timeout(60):
            await sandbox.backend.aclose()
        assert kind.left(sandbox.backend) == []
