"""Executions: how they start, are fed, limited, killed, and what their one ending says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.core.backend import CommandLimits
from app.core.errors import (
    BackendUnavailable,
    BoundExceeded,
    CapabilityMissing,
    CapacityExceeded,
    Conflict,
    InvalidRequest,
    LaunchFailed,
    NotFound,
    WrongState,
)
from app.core.executions import Execution
from app.core.follow import OutputPiece
from app.core.limits import Limits
from app.core.models import Channel, ExecutionState, Exit, ExitReason, SandboxState
from app.core.registry import Registry
from app.core.sandboxes import Capacity, Sandboxes
from app.spill import SpillFolder
from tests.null_backend import CAPABILITIES, STDIN_BUFFER, Gate, NullBackend, pattern
from tests.unit.core.support import Core, Notes, command, spec, steps, text, until

GONE = BackendUnavailable("process", "the launcher is not there")


def exit_of(execution: Execution) -> Exit:
    assert execution.exit is not None
    return execution.exit


# --- the ordinary life


async def test_execution_ends_once_with_code_output_and_times() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "silent-then", "exit", "3")
        assert (execution.state, execution.exit, execution.ended_at) == (ExecutionState.RUNNING, None, None)
        assert sandbox.running == 1
        core.backend.release(execution.id)
        await execution.wait()
        ended = exit_of(execution)
        assert (ended.reason, ended.code, ended.signal) == (ExitReason.EXITED, 3, None)
        assert execution.state is ExecutionState.ENDED
        assert execution.ended_at is not None
        assert execution.started_at <= execution.ended_at
        assert all(log.closed for log in execution.logs.values())
        await sandbox.destroy()
        assert execution.exit is ended
        assert sandbox.running == 0
        assert core.notes.executions == ["started", "exited 0"]


async def test_command_gets_the_environment_of_the_sandbox_and_its_own_wins() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(env={"A": "room", "B": "room"}))
        execution, _ = await sandbox.execute(command("env", env={"B": "own"}))
        await execution.wait()
        assert text(execution) == b"A=room\nB=own\n"


async def test_execution_is_found_by_its_id_in_its_sandbox_only() -> None:
    async with Core() as core:
        sandbox, other = await core.create(), await core.create()
        execution = await core.start(sandbox, "echo")
        assert core.sandboxes.execution(sandbox.id, execution.id) is execution
        for sandbox_id, execution_id in ((other.id, execution.id), (sandbox.id, "exe_x"), ("sbx_x", execution.id)):
            with pytest.raises(NotFound):
                core.sandboxes.execution(sandbox_id, execution_id)


async def test_missing_program_is_an_ending_and_not_an_error() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "missing")
        await execution.wait()
        assert (exit_of(execution).reason, exit_of(execution).not_found) == (ExitReason.START_FAILED, True)


async def test_execute_waits_for_a_boot_and_gives_up_after_its_time() -> None:
    async with Core() as core:
        core.backend.create_gate = Gate()
        sandbox, _ = core.sandboxes.create(spec())
        with pytest.raises(WrongState) as refusal:
            await sandbox.execute(command("echo"), creating_seconds=0)
        assert refusal.value.state == "creating"
        waiting = asyncio.create_task(sandbox.execute(command("echo")))
        await steps(5)
        core.backend.create_gate.open()
        execution, new = await waiting
        assert new
        await execution.wait()


async def test_execute_on_a_failed_or_destroyed_sandbox_is_wrong_state() -> None:
    async with Core() as core:
        core.backend.create_error = LaunchFailed("cgroup", "EROFS", "step cgroup failed: EROFS")
        failed, _ = core.sandboxes.create(spec())
        with pytest.raises(WrongState, match="step cgroup failed") as refusal:
            await failed.execute(command("echo"))
        assert refusal.value.state == "failed"
        core.backend.create_error = None
        destroyed = await core.create()
        await destroyed.destroy()
        with pytest.raises(WrongState) as refusal:
            await destroyed.execute(command("echo"))
        assert refusal.value.state == "destroyed"


async def test_execute_while_the_sandbox_is_being_destroyed_is_wrong_state() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.destroy_gate = Gate()
        ending = asyncio.create_task(sandbox.destroy())
        await core.backend.destroy_gate.reached.wait()
        with pytest.raises(WrongState, match="being destroyed"):
            await sandbox.execute(command("echo"))
        core.backend.destroy_gate.open()
        await ending


# --- ids and numbers


async def test_same_id_with_the_same_command_is_the_same_execution() -> None:
    async with Core() as core:
        sandbox = await core.create()
        calls = (sandbox.execute(command("echo", "x"), "e1") for _ in range(3))
        results = await asyncio.gather(*calls)
        assert {id(execution) for execution, _ in results} == {id(results[0][0])}
        assert sorted(new for _, new in results) == [False, False, True]
        await results[0][0].wait()
        await sandbox.destroy()
        again, new = await sandbox.execute(command("echo", "x"), "e1")
        assert (again, new) == (results[0][0], False)


async def test_same_id_with_another_command_is_a_conflict() -> None:
    async with Core() as core:
        sandbox = await core.create()
        await sandbox.execute(command("echo", "x"), "e1")
        with pytest.raises(Conflict):
            await sandbox.execute(command("echo", "y"), "e1")


async def test_start_that_the_runtime_could_not_do_is_raised_to_all_and_leaves_no_record() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.execute_error = GONE
        calls = (sandbox.execute(command("echo"), "e1") for _ in range(3))
        assert await asyncio.gather(*calls, return_exceptions=True) == [GONE] * 3
        assert sandbox.executions == {}
        assert sandbox.running == 0
        assert core.notes.executions == []
        core.backend.execute_error = None
        _, new = await sandbox.execute(command("echo"), "e1")
        assert new


async def test_failed_start_leaves_no_record_when_its_client_has_disconnected() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.execute_gate, core.backend.execute_error = Gate(), GONE
        call = asyncio.create_task(sandbox.execute(command("echo"), "e1"))
        await core.backend.execute_gate.reached.wait()
        call.cancel()
        core.backend.execute_gate.open()
        await until(lambda: not sandbox.executions)


async def test_capacity_of_executions_is_refused_by_name() -> None:
    async with Core(executions_running=1) as core:
        sandbox = await core.create()
        await core.start(sandbox, "sleep")
        with pytest.raises(CapacityExceeded, match=r"^this sandbox's limit of 1 executions that run or"):
            await core.start(sandbox, "echo")


async def test_sandbox_does_not_wear_out_the_oldest_record_is_forgotten() -> None:
    async with Core(executions_kept=2) as core:
        sandbox = await core.create()
        running = await core.start(sandbox, "sleep")
        for number in range(20):
            execution = await core.start(sandbox, "echo", str(number))
            await execution.wait()
            await execution.output_ended()
            assert list(sandbox.executions.values()) == [running, execution]
        with pytest.raises(NotFound):
            core.sandboxes.execution(sandbox.id, "exe_forgotten")


async def test_execution_that_is_watched_is_not_forgotten() -> None:
    async with Core(executions_kept=1) as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "echo", "1")
        await until(lambda: execution.over)
        execution.enter_view(1)
        with pytest.raises(
            CapacityExceeded,
            match="limit of 1 executions that run, have left processes behind or are watched is reached; free some",
        ):
            await core.start(sandbox, "echo")
        execution.leave_view()
        await core.start(sandbox, "echo")
        assert execution.id not in sandbox.executions


async def test_what_an_execution_left_behind_counts_until_it_is_gone() -> None:
    async with Core(executions_running=2) as core:
        sandbox = await core.create()
        left = [await core.start(sandbox, "daemon", "exit", "0") for _ in range(2)]
        for execution in left:
            await execution.wait()
        with pytest.raises(
            CapacityExceeded, match="limit of 2 executions that run or have left processes behind is reached; free some"
        ) as full:
            await core.start(sandbox, "echo")
        assert full.value.holder == "sandbox"
        assert sandbox.running == 0
        await core.start(await core.create(), "echo")
        await left[0].kill()
        await core.start(sandbox, "echo")


async def test_executions_of_one_sandbox_leave_room_for_another() -> None:
    async with Core(executions=4) as core:
        greedy, other = await core.create(), await core.create()
        for _ in range(2):
            await (await core.start(greedy, "daemon", "exit", "0")).wait()
        with pytest.raises(
            CapacityExceeded, match=r"this sandbox has 2 of the service's 4 executions that .* may have at most 2 now"
        ) as full:
            await core.start(greedy, "echo")
        assert full.value.holder == "sandbox"
        running = await core.start(other, "sleep")
        await greedy.destroy()
        await core.start(other, "sleep")
        await running.kill()


async def test_full_spill_refuses_the_execution_before_anything_starts(tmp_path: Path) -> None:
    folder = SpillFolder(tmp_path, 1024)  # less than a file grows by
    async with Core(folder.of) as core:
        sandbox = await core.create()
        with pytest.raises(BoundExceeded, match="needs more than 512 bytes of stored output"):
            await core.start(sandbox, "echo")
        assert sandbox.executions == {}


async def test_viewers_are_limited() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "sleep")
        execution.enter_view(1)
        with pytest.raises(
            CapacityExceeded, match=r"^this execution's limit of 1 viewers is reached; free some, or try again later$"
        ):
            execution.enter_view(1)
        execution.leave_view()
        execution.enter_view(1)


async def test_command_beyond_the_runtime_is_refused_before_anything_starts() -> None:
    backend = NullBackend(
        command_limits=CommandLimits(arguments=2), capabilities=frozenset(c for c in CAPABILITIES if c != "stdin")
    )
    sandboxes = Sandboxes(Registry([backend], default="process"), Capacity(), Notes())
    sandbox, _ = sandboxes.create(spec())
    await sandboxes.wait_created(sandbox, 60)
    with pytest.raises(InvalidRequest):
        await sandbox.execute(command("echo", "1", "2"))
    with pytest.raises(CapabilityMissing):
        await sandbox.execute(command("cat", stdin=True))
    assert sandbox.executions == {}
    await sandboxes.aclose()


# --- how it ends, and what is said about it


async def test_timeout_ends_it_and_says_so() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "daemon", "sleep", timeout_seconds=0.01)
        await execution.wait()
        ended = exit_of(execution)
        assert (ended.reason, ended.signal) == (ExitReason.TIMEOUT, "SIGKILL")
        assert ended.detail == "still running after 0.01 s"
        await until(lambda: core.backend.alive == [execution.sandbox_id])


async def test_killed_execution_says_so_and_takes_its_daemons_along() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution, other = await core.start(sandbox, "daemon", "sleep"), await core.start(sandbox, "sleep")
        await execution.kill()
        ended = exit_of(execution)
        assert (ended.reason, ended.detail) == (ExitReason.KILLED, "the execution was deleted")
        assert core.backend.alive == [sandbox.id, f"{sandbox.id}/{other.id}"]
        await execution.kill()
        assert exit_of(execution) is ended


async def test_deleting_an_ended_execution_ends_what_it_left_behind() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "daemon", "exit", "0")
        await execution.wait()
        assert core.backend.alive == [sandbox.id, f"{sandbox.id}/{execution.id}"]
        await execution.kill()
        assert core.backend.alive == [sandbox.id]
        assert exit_of(execution).reason is ExitReason.EXITED


async def test_program_that_ended_by_itself_first_is_not_called_killed() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "silent-then", "exit", "7")
        core.backend.kill_gate = Gate()
        killing = asyncio.create_task(execution.kill())
        await core.backend.kill_gate.reached.wait()
        core.backend.release(execution.id)
        await execution.wait()
        core.backend.kill_gate.open()
        await killing
        assert (exit_of(execution).reason, exit_of(execution).code) == (ExitReason.EXITED, 7)


async def test_first_reason_to_end_it_counts() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "sleep")
        core.backend.kill_gate = Gate()
        first = asyncio.create_task(execution.end(ExitReason.TIMEOUT, "first"))
        second = asyncio.create_task(execution.kill())
        await core.backend.kill_gate.reached.wait()
        core.backend.kill_gate.open()
        await asyncio.gather(first, second)
        assert (exit_of(execution).reason, exit_of(execution).detail) == (ExitReason.TIMEOUT, "first")


async def test_signal_of_a_client_is_signaled_and_not_killed() -> None:
    async with Core() as core:
        sandbox = await core.create()
        for number, name in ((15, "SIGTERM"), (9, "SIGKILL")):
            execution = await core.start(sandbox, "sleep")
            await execution.signal(number)
            await execution.wait()
            assert (exit_of(execution).reason, exit_of(execution).signal) == (ExitReason.SIGNALED, name)
            with pytest.raises(WrongState) as refusal:
                await execution.signal(number)
            assert refusal.value.state == "ended"


async def test_memory_kill_is_oom() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "oom")
        await execution.wait()
        assert exit_of(execution).reason is ExitReason.OOM


async def test_output_limit_kills_and_the_log_holds_the_first_bytes() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(limits=Limits(output_bytes=100_000)))
        execution = await core.start(sandbox, "spew", kill=True)
        await execution.wait()
        assert exit_of(execution).reason is ExitReason.OUTPUT_LIMIT
        assert exit_of(execution).detail == "stdout passed 100000 bytes"
        log = execution.logs[Channel.STDOUT]
        assert (log.start, log.total) == (0, 100_000)
        assert text(execution) == pattern(100_000)[: len(text(execution))]


async def test_output_up_to_the_limit_is_no_reason_to_kill() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(limits=Limits(output_bytes=100_000)))
        execution = await core.start(sandbox, "print", "100000", kill=True)
        await execution.wait()
        assert exit_of(execution).reason is ExitReason.EXITED


async def test_output_limit_asks_for_one_kill_however_much_comes() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(limits=Limits(output_bytes=10)))
        execution = await core.start(sandbox, "sleep", kill=True)
        core.backend.kill_gate = Gate()
        for _ in range(100):
            execution.logs[Channel.STDERR].append(b"0123456789")
        assert len(execution._tasks) <= 1
        core.backend.kill_gate.open()
        await execution.wait()
        assert exit_of(execution).detail == "stderr passed 10 bytes"


async def test_delete_of_an_execution_that_is_still_starting_ends_it() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.execute_gate = Gate()
        call = asyncio.create_task(sandbox.execute(command("sleep"), "e1"))
        await core.backend.execute_gate.reached.wait()
        killing = asyncio.create_task(sandbox.executions["e1"].kill())
        await steps(3)
        assert not killing.done()
        core.backend.execute_gate.open()
        await killing
        execution, _ = await call
        assert exit_of(execution).reason is ExitReason.KILLED
        assert core.backend.alive == [sandbox.id]


async def test_signal_and_stdin_of_an_execution_that_is_still_starting_wait_for_it() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.execute_gate = Gate()
        call = asyncio.create_task(sandbox.execute(command("cat", stdin=True), "e1"))
        await core.backend.execute_gate.reached.wait()
        execution = sandbox.executions["e1"]
        feeding = asyncio.create_task(execution.lease_stdin(take=False).write(b"early"))
        await steps(3)
        assert not feeding.done()
        signalling = asyncio.create_task(execution.signal(15))
        await steps(3)
        assert not signalling.done()
        core.backend.execute_gate.open()
        await asyncio.gather(feeding, signalling, call)
        await execution.wait()
        assert exit_of(execution).signal == "SIGTERM"
        assert execution.stdin_bytes == 5


async def test_follower_of_an_execution_sees_all_of_it_and_then_its_end() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "silent-then", "both", "200000")
        seen = dict.fromkeys(Channel, b"")
        with execution.follow({Channel.STDOUT: 0, Channel.STDERR: 100}) as follower:
            core.backend.release(execution.id)
            while (item := await follower.next()) is not None:
                assert isinstance(item, OutputPiece)
                seen[item.channel] += item.data
        assert execution.exit is not None
        assert seen == {Channel.STDOUT: pattern(200_000), Channel.STDERR: pattern(200_000)[100:]}


async def test_executions_are_numbered_in_their_order() -> None:
    async with Core() as core:
        sandbox = await core.create()
        runs = [await core.start(sandbox, "echo") for _ in range(3)]
        numbers = [run.sequence for run in runs]
        assert numbers == sorted(set(numbers))
        assert list(sandbox.executions.values()) == runs
        assert [run.id for run in runs] == sorted(run.id for run in runs)


async def test_kill_that_the_runtime_could_not_do_is_told_and_the_program_runs_on() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "sleep")
        core.backend.kill_error = GONE
        with pytest.raises(BackendUnavailable):
            await execution.kill()
        assert execution.state is ExecutionState.RUNNING
        core.backend.kill_error = None
        await execution.kill()
        assert exit_of(execution).reason is ExitReason.KILLED


async def test_wait_returns_at_the_end_or_after_its_time() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "silent-then", "exit", "0")
        await execution.wait(0)
        await execution.wait(0.001)
        assert execution.exit is None
        waiting = asyncio.create_task(execution.wait(1000))
        await steps(2)
        core.backend.release(execution.id)
        await waiting
        assert execution.exit is not None


# --- stdin


async def test_stdin_reaches_the_program_in_order_and_ends() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "cat", stdin=True)
        lease = execution.lease_stdin(take=False)
        for begin in range(0, 3 * STDIN_BUFFER, 2**18):
            await lease.write(pattern(2**18, begin))
        await lease.close()
        await execution.wait()
        assert execution.stdin_bytes == 3 * STDIN_BUFFER
        log = execution.logs[Channel.STDOUT]
        assert log.total == 3 * STDIN_BUFFER
        assert log.read(log.start, 1000) == pattern(1000, log.start)
        with pytest.raises(WrongState, match="ended"):
            await lease.write(b"x")


async def test_one_holder_of_stdin_and_taking_over_ends_the_old_ones_right() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "cat", stdin=True)
        old = execution.lease_stdin(take=False)
        with pytest.raises(Conflict):
            execution.lease_stdin(take=False)
        new = execution.lease_stdin(take=True)
        assert old.taken_over.is_set()
        assert not new.taken_over.is_set()
        old.release()
        with pytest.raises(Conflict):
            execution.lease_stdin(take=False)
        with pytest.raises(WrongState, match="taken stdin over"):
            await old.write(b"old")
        with pytest.raises(WrongState):
            await old.close()
        await new.write(b"new")
        new.release()
        last = execution.lease_stdin(take=False)
        await last.close()
        await execution.wait()
        assert text(execution) == b"new"


async def test_stdin_that_is_none_closed_or_over_cannot_be_leased() -> None:
    async with Core() as core:
        sandbox = await core.create()
        none = await core.start(sandbox, "sleep")
        with pytest.raises(WrongState, match="stdin: none"):
            none.lease_stdin(take=True)
        closed = await core.start(sandbox, "silent-then", "cat", stdin=True)
        lease = closed.lease_stdin(take=False)
        await lease.close()
        lease.release()
        with pytest.raises(WrongState, match="closed"):
            closed.lease_stdin(take=True)
        with pytest.raises(WrongState, match="closed"):
            await closed.feed(b"x")
        core.backend.release(closed.id)
        await closed.wait()
        with pytest.raises(WrongState, match="ended"):
            closed.lease_stdin(take=True)


async def test_writer_that_disconnects_while_stdin_is_full_loses_nothing_and_costs_one_piece_at_most() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "silent-then", "cat", stdin=True)
        program = core.program(execution)
        piece = STDIN_BUFFER // 2
        for turn in range(20):
            write = asyncio.create_task(execution.feed(pattern(piece, execution.stdin_bytes)))
            await steps(4)
            if not write.done():
                write.cancel()
            await asyncio.wait([write])
            assert len(program._stdin) <= STDIN_BUFFER + piece, f"grows at turn {turn}"
        sent = execution.stdin_bytes
        assert sent == len(program._stdin)
        core.backend.release(execution.id)
        await execution.end_stdin()
        await execution.wait()
        log = execution.logs[Channel.STDOUT]
        assert log.total == sent
        assert log.read(log.start, 1000) == pattern(1000, log.start)


async def test_end_of_a_program_lets_a_blocked_writer_go() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "sleep", stdin=True)
        write = asyncio.create_task(execution.feed(bytes(2 * STDIN_BUFFER)))
        waiting = asyncio.create_task(execution.feed(b"more"))
        await steps(5)
        assert not write.done()
        await execution.kill()
        await write
        with pytest.raises(WrongState, match="ended"):
            await waiting


async def test_sandbox_state_does_not_change_when_its_program_fails() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "exit", "1")
        await execution.wait()
        assert sandbox.state is SandboxState.RUNNING


async def test_stop_does_not_wait_for_a_kill_that_hangs_after_its_program_ended() -> None:
    core = Core()
    core.backend.kill_gate = Gate()
    execution = await core.start(await core.create(), "silent-then", "exit", "0", timeout_seconds=0.001)
    await core.backend.kill_gate.reached.wait()
    core.backend.release(execution.id)
    await execution.wait()
    assert exit_of(execution).reason is ExitReason.EXITED
    await core.close()
