"""The use cases of a sandbox: create, find, change, destroy, expire, lose, stop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.core.errors import (
    BackendFailure,
    BackendUnavailable,
    CapabilityMissing,
    CapacityExceeded,
    Conflict,
    LaunchFailed,
    NotFound,
    ServiceStopping,
    UnknownRuntime,
    WrongState,
)
from app.core.models import ExitReason, IdleCounts, ResourceUsage, SandboxState
from app.core.sandboxes import Sandbox
from tests.null_backend import Gate
from tests.unit.core.support import Core, command, no_tasks_left, spec, steps, text, timers, until

FAILURE = LaunchFailed("mount_proc", "EPERM", "step mount_proc failed: EPERM")


# --- create


async def test_created_sandbox_runs_and_has_a_sortable_id() -> None:
    async with Core() as core:
        first, new = core.sandboxes.create(spec())
        assert (first.state, new, first.named) == (SandboxState.CREATING, True, False)
        await core.sandboxes.wait_created(first, 60)
        second = await core.create()
        assert first.state is SandboxState.RUNNING
        assert first.id < second.id
        assert first.sequence < second.sequence
        assert list(core.sandboxes) == [first, second]
        assert core.backend.alive == sorted([first.id, second.id])
        assert core.notes.sandboxes == ["created", "created"]


async def test_runtime_is_told_whose_sandbox_it_is() -> None:
    async with Core() as core:
        first, _ = core.sandboxes.create(spec(), "a", "key-of-a")
        await core.sandboxes.wait_created(first, 60)
        assert (core.backend.sandboxes["a"].spec.client, first.client) == ("key-of-a", "key-of-a")
        again, new = core.sandboxes.create(spec(), "a", "key-of-b")
        assert (again, new, again.client) == (first, False, "key-of-a"), "it is no part of what was asked for"


async def test_same_id_with_the_same_body_is_the_same_sandbox() -> None:
    async with Core() as core:
        first, new = core.sandboxes.create(spec(), "a")
        again, newer = core.sandboxes.create(spec(), "a")
        assert (new, newer) == (True, False)
        assert first is again
        assert first.named
        await asyncio.gather(*(core.sandboxes.wait_created(s, 60) for s in (first, again)))
        third, _ = core.sandboxes.create(spec(), "a")
        assert third is first
        assert core.backend.created == ["a"]


async def test_same_id_with_another_body_is_a_conflict() -> None:
    async with Core() as core:
        await core.create(spec(), "a")
        with pytest.raises(Conflict, match="made by a different request"):
            core.sandboxes.create(spec(ttl_seconds=7), "a")


async def test_update_does_not_change_what_the_body_of_an_id_is() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(), "a")
        sandbox.update(labels={"a": "b"}, ttl_seconds=9)
        assert core.sandboxes.create(spec(), "a") == (sandbox, False)


async def test_id_of_a_destroyed_sandbox_is_taken_until_its_record_is_forgotten() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(), "a")
        core.backend.destroy_gate = Gate()
        ending = asyncio.create_task(sandbox.destroy())
        await core.backend.destroy_gate.reached.wait()
        with pytest.raises(Conflict, match="destroyed"):
            core.sandboxes.create(spec(), "a")
        core.backend.destroy_gate.open()
        await ending
        with pytest.raises(Conflict, match="destroyed"):
            core.sandboxes.create(spec(), "a")


async def test_record_of_a_destroyed_sandbox_is_forgotten_after_its_time() -> None:
    async with Core(record_seconds=0) as core:
        sandbox = await core.create(spec(), "a")
        await sandbox.destroy()
        await until(lambda: not list(core.sandboxes))
        with pytest.raises(NotFound):
            core.sandboxes.get("a")
        assert (await core.create(spec(), "a")) is not sandbox


async def test_missing_capability_and_unknown_runtime_are_refused_before_anything_is_made() -> None:
    async with Core() as core:
        with pytest.raises(CapabilityMissing) as refusal:
            core.sandboxes.create(spec(requires=frozenset({"network_direct", "stdin", "network_proxy"})))
        assert refusal.value.missing == ["network_direct", "network_proxy"]
        with pytest.raises(UnknownRuntime):
            core.sandboxes.create(spec(runtime="wasm"))
        assert list(core.sandboxes) == []
        assert core.backend.created == []


async def test_failed_boot_is_raised_to_everyone_who_waits_and_leaves_no_record() -> None:
    async with Core() as core:
        core.backend.create_error = FAILURE
        sandbox, _ = core.sandboxes.create(spec(), "a")
        again, _ = core.sandboxes.create(spec(), "a")
        waits = [core.sandboxes.wait_created(s, 60) for s in (sandbox, again)]
        assert await asyncio.gather(*waits, return_exceptions=True) == [FAILURE, FAILURE]
        assert list(core.sandboxes) == []
        assert core.backend.alive == []
        assert core.notes.sandboxes == ["create_failed"]
        core.backend.create_error = None
        retried = await core.create(spec(), "a")
        assert retried.state is SandboxState.RUNNING


async def test_failed_boot_that_nobody_waited_for_shows_its_reason() -> None:
    async with Core() as core:
        core.backend.create_gate, core.backend.create_error = Gate(), FAILURE
        sandbox, _ = core.sandboxes.create(spec())
        await core.sandboxes.wait_created(sandbox, 0)
        assert sandbox.state == "creating"
        core.backend.create_gate.open()
        await core.sandboxes.get(sandbox.id).wait(60)
        assert (sandbox.state, sandbox.state_reason) == (SandboxState.FAILED, str(FAILURE))
        await sandbox.destroy()
        assert sandbox.state is SandboxState.DESTROYED
        assert core.notes.sandboxes == ["create_failed"], "one sandbox ends once"


async def test_boot_that_breaks_in_an_unforeseen_way_fails_the_sandbox_and_is_reported() -> None:
    core = Core()
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    core.backend.create_error = KeyError("a bug")  # type: ignore[assignment]  # a backend that breaks its contract
    sandbox, _ = core.sandboxes.create(spec())
    with pytest.raises(BackendFailure, match="KeyError"):
        await core.sandboxes.wait_created(sandbox, 60)
    assert list(core.sandboxes) == []
    await steps(3)
    assert [type(context["exception"]) for context in reported] == [KeyError]
    await core.close()


async def test_capacity_of_sandboxes_counts_what_lives_and_not_what_is_over() -> None:
    async with Core(sandboxes=2) as core:
        first, _ = await core.create(), await core.create()
        with pytest.raises(CapacityExceeded, match="2 sandboxes"):
            core.sandboxes.create(spec())
        await first.destroy()
        third = await core.create()
        await core.backend.lose(third.id)
        await until(lambda: third.over)
        assert third.state is SandboxState.FAILED
        await core.create()


async def test_full_records_forget_the_oldest_that_is_over_and_refuse_when_none_is() -> None:
    async with Core(records=2) as core:
        first, second = await core.create(), await core.create()
        with pytest.raises(CapacityExceeded, match="2 sandbox records"):
            core.sandboxes.create(spec())
        await second.destroy()
        third = await core.create()
        assert list(core.sandboxes) == [first, third]
        with pytest.raises(NotFound):
            core.sandboxes.get(second.id)


async def test_record_of_a_destroyed_sandbox_keeps_no_environments() -> None:
    """Records are many and stay for an hour; 25 with 4 MiB each were 350 MiB."""
    async with Core() as core:
        sandbox, _ = core.sandboxes.create(spec(env={"A": "x" * 1000}))
        await core.sandboxes.wait_created(sandbox, 60)
        asked = command("sleep", env={"B": "y" * 1000})
        execution, _ = await sandbox.execute(asked, "e1")
        assert execution.command.env == {"A": "x" * 1000, "B": "y" * 1000}
        await sandbox.destroy()
        assert sandbox.spec.env == {} and execution.command.env == {}
        assert await sandbox.execute(asked, "e1") == (execution, False)
        with pytest.raises(Conflict):
            await sandbox.execute(command("false"), "e1")


async def test_an_ended_execution_keeps_no_environment_and_still_knows_its_command() -> None:
    async with Core() as core:
        sandbox = await core.create()
        asked = command("exit", "0", env={"B": "y"})
        execution, _ = await sandbox.execute(asked, "e1")
        assert await sandbox.execute(asked, "e1") == (execution, False)
        await execution.wait()
        assert execution.command.env == {}
        assert await sandbox.execute(asked, "e1") == (execution, False)
        with pytest.raises(Conflict):
            await sandbox.execute(command("exit", "0", env={"B": "z"}), "e1")


async def test_abandoned_sandbox_is_destroyed_unless_its_client_chose_the_id() -> None:
    async with Core() as core:
        nameless, named = await core.create(), await core.create(spec(), "mine")
        await nameless.abandon()
        await named.abandon()
        assert (nameless.state, named.state) == (SandboxState.DESTROYED, SandboxState.RUNNING)
        assert core.backend.alive == ["mine"]


# --- change


async def test_update_changes_life_and_labels_and_leaves_the_rest() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(labels={"a": "1"}, idle_seconds=50))
        before, expires = sandbox.last_active_at, sandbox.expires_at
        sandbox.update(ttl_seconds=10)
        assert sandbox.expires_at < expires
        assert (sandbox.labels, sandbox.idle_seconds) == ({"a": "1"}, 50)
        sandbox.update(labels={"b": "2"}, set_idle=True)
        assert (sandbox.labels, sandbox.idle_seconds) == ({"b": "2"}, None)
        assert sandbox.last_active_at > before


async def test_update_of_an_ended_sandbox_is_wrong_state() -> None:
    async with Core() as core:
        lost, destroyed = await core.create(), await core.create()
        await core.backend.lose(lost.id)
        await until(lambda: lost.state is SandboxState.FAILED)
        await destroyed.destroy()
        for sandbox in (lost, destroyed):
            with pytest.raises(WrongState) as refusal:
                sandbox.update(labels={})
            assert refusal.value.state == sandbox.state


# --- destroy


async def test_destroy_is_idempotent_and_everybody_waits_for_the_same_end() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "sleep")
        clock = sandbox._timer
        core.backend.destroy_gate = Gate()
        both = asyncio.gather(sandbox.destroy("first"), sandbox.destroy("second"))
        await core.backend.destroy_gate.reached.wait()
        assert not both.done()
        core.backend.destroy_gate.open()
        await both
        await sandbox.destroy()
        assert core.backend.alive == []
        assert sandbox._handle is None
        assert clock is not None
        assert clock.cancelled()
        await steps(5)
        assert len(core.sandboxes._tasks) == 0
        assert timers() == ["Records.forget"]
        assert (sandbox.state, sandbox.state_reason) == (SandboxState.DESTROYED, "first")
        assert execution.exit is not None
        assert (execution.exit.reason, execution.exit.detail) == (ExitReason.KILLED, "first")
        assert core.notes.sandboxes == ["created", "destroyed"]


async def test_destroy_while_booting_ends_the_boot() -> None:
    async with Core() as core:
        core.backend.create_gate = Gate()
        sandbox, _ = core.sandboxes.create(spec())
        waiting = asyncio.create_task(core.sandboxes.wait_created(sandbox, 60))
        await core.backend.create_gate.reached.wait()
        await sandbox.destroy()
        await waiting
        assert sandbox.state is SandboxState.DESTROYED
        assert core.backend.alive == []


@pytest.mark.parametrize("turns", range(8))
async def test_destroy_at_any_moment_of_the_boot_leaves_nothing(turns: int) -> None:
    async with Core() as core:
        sandbox, _ = core.sandboxes.create(spec())
        waiting = asyncio.create_task(core.sandboxes.wait_created(sandbox, 60))
        await steps(turns)
        await sandbox.destroy()
        assert sandbox.state is SandboxState.DESTROYED
        assert core.backend.alive == []
        await waiting


async def test_failed_destroy_is_told_and_may_be_tried_again() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.destroy_error = BackendUnavailable("process", "the launcher is not there")
        with pytest.raises(BackendUnavailable):
            await sandbox.destroy()
        assert sandbox.state is SandboxState.RUNNING
        assert sandbox._timer is not None, "nobody would ever end it"
        assert not sandbox._timer.cancelled()
        core.backend.destroy_error = None
        await sandbox.destroy()
        assert core.backend.alive == []


async def test_loss_after_a_failed_destroy_is_noticed() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.destroy_error = BackendUnavailable("process", "the launcher is not there")
        with pytest.raises(BackendUnavailable):
            await sandbox.destroy()
        core.backend.destroy_error = None
        await core.backend.lose(sandbox.id, "the launcher died")
        await until(lambda: sandbox.state is SandboxState.FAILED)


async def test_output_goes_with_the_sandbox_but_an_open_stream_keeps_it_for_a_while() -> None:
    async with Core(stream_end_seconds=1000) as core:
        sandbox = await core.create()
        watched, unwatched = await core.start(sandbox, "echo", "a"), await core.start(sandbox, "echo", "b")
        await asyncio.gather(watched.wait(), unwatched.wait())
        watched.enter_view(1)
        await sandbox.destroy()
        assert text(unwatched) == b""
        assert text(watched) == b"a\n"


async def test_output_of_a_stream_that_does_not_end_goes_after_its_time() -> None:
    async with Core(stream_end_seconds=0) as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "echo", "a")
        await execution.wait()
        execution.enter_view(1)
        await sandbox.destroy()
        await until(lambda: text(execution) == b"")
        assert {log.total for log in execution.logs.values()} == {0, 2}


async def test_destroy_while_an_execution_cannot_start_comes_to_its_end() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.execute_gate = Gate()
        calls = [asyncio.create_task(sandbox.execute(command("echo", str(n)))) for n in range(3)]
        await core.backend.execute_gate.reached.wait()
        await sandbox.destroy()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [WrongState] * 3
        assert sandbox.executions == {}
        assert core.notes.executions == []


# --- loss


async def test_lost_sandbox_fails_with_its_reason_and_is_cleaned_up() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "sleep")
        await core.backend.lose(sandbox.id, "the worker was killed")
        await execution.wait()
        assert execution.exit is not None
        assert (execution.exit.reason, execution.exit.detail) == (ExitReason.LOST, "the worker was killed")
        await until(lambda: sandbox._handle is None)
        assert (sandbox.state, sandbox.state_reason) == (SandboxState.FAILED, "the worker was killed")
        assert core.backend.alive == []
        with pytest.raises(WrongState, match="the worker was killed"):
            await sandbox.execute(command("echo"))
        await sandbox.destroy()
        assert core.notes.sandboxes == ["created", "lost"], "one sandbox ends once"


@pytest.mark.parametrize("turns", range(8))
async def test_destroy_at_any_moment_of_a_loss_ends_in_destroyed(turns: int) -> None:
    async with Core() as core:
        sandbox = await core.create()
        await core.backend.lose(sandbox.id)
        await steps(turns)
        await sandbox.destroy()
        assert sandbox.state is SandboxState.DESTROYED
        assert core.backend.alive == []
        assert len(core.notes.sandboxes) == 2


async def test_lost_sandbox_that_cannot_be_cleaned_up_is_told_once_and_tried_again() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.destroy_error = BackendUnavailable("process", "the launcher is not there")
        await core.backend.lose(sandbox.id)
        await until(lambda: sandbox.state is SandboxState.FAILED)
        with pytest.raises(BackendUnavailable):
            await sandbox.destroy()
        await steps(10)
        assert sandbox._handle is not None, "it still holds what could not be given back"
        core.backend.destroy_error = None
        await sandbox.destroy()
        assert core.notes.sandboxes == ["created", "lost"]
        assert core.backend.alive == []


# --- the clock


async def expired(sandbox: Sandbox) -> str | None:
    async with asyncio.timeout(60):
        while sandbox.state is not SandboxState.DESTROYED:  # noqa: ASYNC110 - a record has no event for its end
            await asyncio.sleep(0)
    return sandbox.state_reason


async def test_sandbox_is_destroyed_when_its_ttl_passes_even_while_a_program_runs() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "sleep")
        sandbox.update(ttl_seconds=0.05)
        assert await expired(sandbox) == "the sandbox expired: its ttl passed"
        assert execution.exit is not None
        assert execution.exit.reason is ExitReason.KILLED
        assert execution.exit.detail == "the sandbox expired: its ttl passed"
        assert core.backend.alive == []


async def test_renewal_in_the_very_turn_of_the_expiry_is_refused() -> None:
    """Else it would be told 200, and the sandbox would go all the same."""
    async with Core() as core:
        sandbox = await core.create()
        refused: list[str] = []

        def renew() -> None:
            try:
                sandbox.update(ttl_seconds=300)
            except WrongState as error:
                refused.append(error.state)

        sandbox.update(ttl_seconds=0.05)
        assert sandbox._timer is not None
        asyncio.get_running_loop().call_at(sandbox._timer.when() + 0.001, renew)
        time.sleep(0.06)  # noqa: ASYNC251 - both are due in one turn of the loop, the expiry first
        assert await expired(sandbox) == "the sandbox expired: its ttl passed"
        assert refused == ["running"]


async def test_boot_that_never_ends_is_given_up() -> None:
    async with Core(creating_seconds=0.01) as core:
        core.backend.create_gate = Gate()
        sandbox, _ = core.sandboxes.create(spec(ttl_seconds=1000))
        assert await expired(sandbox) == "the sandbox expired: its boot took more than 0.01 seconds"
        assert core.backend.alive == []


async def test_ttl_counts_from_the_moment_at_which_the_sandbox_runs() -> None:
    """A boot that takes longer than the ttl leaves the whole ttl to the sandbox."""
    async with Core() as core:
        core.backend.create_gate = gate = Gate()
        sandbox, _ = core.sandboxes.create(spec(ttl_seconds=500))
        sandbox.created_at -= timedelta(seconds=700)
        sandbox._expires_at = sandbox.created_at + timedelta(seconds=500)
        sandbox._arm()
        assert sandbox._timer is not None
        assert sandbox._timer.when() > asyncio.get_running_loop().time() + 1000
        gate.open()
        await core.sandboxes.wait_created(sandbox, 60)
        assert (sandbox.state, 400 < sandbox._seconds_left() <= 500) == ("running", True)


async def test_idle_sandbox_is_destroyed() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(idle_seconds=0.01))
        assert await expired(sandbox) == "the sandbox expired: it was idle"


async def test_running_program_keeps_a_sandbox_from_being_idle_and_its_end_starts_the_clock() -> None:
    async with Core() as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "silent-then", "echo")
        sandbox.update(set_idle=True, idle_seconds=0.001)
        assert sandbox._timer is not None
        assert sandbox._timer.when() > asyncio.get_running_loop().time() + 1000
        core.backend.release(execution.id)
        assert await expired(sandbox) == "the sandbox expired: it was idle"


async def test_a_tiny_idle_time_asks_for_processes_once_in_five_seconds() -> None:
    """The time between two questions is what the timer says; the test lets each timer fire at once."""
    async with Core() as core:
        sandbox = await core.create(spec(idle_seconds=0.000001, idle_counts=IdleCounts.PROCESSES, ttl_seconds=1000))
        gate = core.backend.usage_gate = Gate()
        gate.open()
        handle, asked = core.backend.sandboxes[sandbox.id], 0
        usage = handle.usage

        async def used() -> ResourceUsage:
            nonlocal asked
            asked += 1
            return replace(await usage(), processes=1)

        handle.usage = used  # type: ignore[method-assign]
        loop = asyncio.get_running_loop()
        for _ in range(3):
            before, began = asked, loop.time()
            sandbox._expire()
            await until(lambda before=before: asked > before and len(asyncio.all_tasks()) <= 2)  # type: ignore[misc]
            assert sandbox._timer is not None
            assert began + 5 <= sandbox._timer.when() <= loop.time() + 5
        assert asked <= 4


async def test_use_puts_the_idle_end_off() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(idle_seconds=1000))
        first = sandbox._seconds_left()
        assert first <= 1000
        await steps(3)
        before = sandbox._seconds_left()
        core.sandboxes.use(sandbox.id)
        assert sandbox._seconds_left() > before
        old = sandbox._timer
        sandbox._expire()  # a timer that was set before the use
        await steps(5)
        assert sandbox._end is None
        assert sandbox._timer is not None
        assert sandbox._timer is not old


async def test_boot_is_not_idleness_and_the_idle_clock_starts_at_its_end() -> None:
    async with Core() as core:
        core.backend.create_gate = Gate()
        sandbox, _ = core.sandboxes.create(spec(idle_seconds=0.001))
        await core.backend.create_gate.reached.wait()
        assert sandbox._seconds_left() > 1000
        core.backend.create_gate.open()
        await core.sandboxes.wait_created(sandbox, 60)
        assert sandbox.last_active_at > sandbox.created_at
        assert await expired(sandbox) == "the sandbox expired: it was idle"


async def test_everything_that_is_done_to_a_sandbox_counts_as_activity() -> None:
    async with Core() as core:
        sandbox = await core.create()
        seen = [sandbox.last_active_at]
        execution = await core.start(sandbox, "silent-then", "echo")
        seen.append(sandbox.last_active_at)
        core.sandboxes.execution(sandbox.id, execution.id)
        seen.append(sandbox.last_active_at)
        core.backend.release(execution.id)
        await execution.wait()
        await steps(2)
        seen.append(sandbox.last_active_at)
        assert seen == sorted(set(seen)), "each of them is later than the one before"
        core.sandboxes.get(sandbox.id)
        assert sandbox.last_active_at == seen[-1], "a look from outside is none"


async def test_expired_sandbox_that_cannot_be_destroyed_is_tried_again_without_haste() -> None:
    async with Core() as core:
        sandbox = await core.create()
        core.backend.destroy_error = BackendUnavailable("process", "the launcher is not there")
        sandbox._expires_at = sandbox.created_at
        sandbox._expire()
        assert sandbox._timer is not None
        first, began = sandbox._timer, asyncio.get_running_loop().time()
        await until(lambda: sandbox._timer is not first)
        await until(lambda: sandbox._end is None)
        assert began + 4 < sandbox._timer.when() < asyncio.get_running_loop().time() + 6
        core.backend.destroy_error = None
        sandbox._expire()
        assert await expired(sandbox) == "the sandbox expired: its ttl passed"


async def test_longer_ttl_counts_anew_from_now() -> None:
    async with Core() as core:
        sandbox = await core.create(spec(ttl_seconds=60))
        sandbox.update(ttl_seconds=1000)
        sandbox._expire()
        await steps(5)
        assert sandbox._end is None


# --- stop


async def test_stop_destroys_everything_in_every_state_and_takes_no_more() -> None:
    core = Core()
    running, lost = await core.create(), await core.create()
    await core.start(running, "daemon", "sleep")
    await core.backend.lose(lost.id)
    destroyed = await core.create()
    await destroyed.destroy()
    core.backend.create_gate = Gate()
    core.sandboxes.create(spec())
    await core.backend.create_gate.reached.wait()
    core.sandboxes.create(spec())
    await core.sandboxes.aclose()
    assert core.backend.alive == []
    assert list(core.sandboxes) == []
    with pytest.raises(ServiceStopping, match=r"^the service is stopping and makes no sandbox any more; try again"):
        core.sandboxes.create(spec())
    await core.sandboxes.aclose()
    await no_tasks_left()


async def test_stop_ends_even_when_the_runtime_cannot_destroy() -> None:
    core = Core()
    sandbox = await core.create()
    execution = await core.start(sandbox, "sleep")
    core.backend.destroy_error = BackendUnavailable("process", "the launcher is not there")
    await core.sandboxes.aclose()
    assert execution.exit is not None
    assert execution.exit.reason is ExitReason.LOST
    core.backend.destroy_error = None
    await core.backend.aclose()
    assert core.backend.alive == []
    await no_tasks_left()
