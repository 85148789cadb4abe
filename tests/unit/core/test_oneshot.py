from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from app.core.capabilities import Capability
from app.core.errors import (
    BackendTimeout,
    BackendUnavailable,
    BulkheadError,
    CapabilityMissing,
    CapacityExceeded,
    DiskFull,
    InvalidRequest,
    LaunchFailed,
    UnsupportedByRuntime,
    WrongState,
)
from app.core.limits import Limits
from app.core.models import ExitReason
from app.core.oneshot import OneShot, run_once
from app.core.placing import PlacedFile
from app.core.running import Job, Outcome
from tests.null_backend import CAPABILITIES, Gate, NullBackend, pattern
from tests.unit.core.support import Core, cancelled_after, command, spec, until

MIB = 1024 * 1024


def shot(
    *argv: str, stdin: bytes = b"", files: tuple[PlacedFile, ...] = (), output: int = MIB, **options: Any
) -> OneShot:
    wanted = spec(limits=Limits(output_bytes=output), env={"GIVEN": "1"}, workdir="/tmp")
    return OneShot(wanted, Job(command(*argv, stdin=bool(stdin), **options), files, stdin))


async def once(core: Core, *argv: str, **options: Any) -> Outcome:
    """A run; afterwards nothing of it is there, nor remembered."""
    outcome = await run_once(core.sandboxes, shot(*argv, **options))
    assert core.backend.alive == []
    assert list(core.sandboxes) == []
    return outcome


async def test_a_run_gives_the_exit_and_both_channels_and_leaves_nothing() -> None:
    async with Core() as core:
        said = await once(core, "both", "8")
        assert (said.exit.reason, said.exit.code) == (ExitReason.EXITED, 0)
        assert (said.stdout.data, said.stderr.data) == (pattern(8), pattern(8))
        assert not said.stdout.truncated
        assert core.backend.created == [said.sandbox_id]
        assert core.notes.sandboxes == ["created", "destroyed"]
        assert core.notes.executions == ["started", "exited 16"]


async def test_environment_and_directory_are_those_of_the_sandbox() -> None:
    async with Core() as core:
        assert (await once(core, "env")).stdout.data == b"GIVEN=1\n"


@pytest.mark.parametrize("size", [1, 3 * MIB + 5])
async def test_stdin_is_fed_to_its_end(size: int) -> None:
    async with Core() as core:
        said = await once(core, "cat", stdin=pattern(size), output=4 * MIB)
        assert said.stdout.data[-256 * 1024 :] == pattern(size)[-256 * 1024 :]  # without a spill memory keeps so much
        assert said.exit.code == 0


@pytest.mark.parametrize("argv", [("exit", "3"), ("silent-then", "exit", "3")])
async def test_a_program_that_does_not_read_its_stdin_ends_all_the_same(argv: tuple[str, ...]) -> None:
    async with Core() as core:
        running = asyncio.ensure_future(run_once(core.sandboxes, shot(*argv, stdin=bytes(3 * MIB))))
        if argv[0] == "silent-then":
            await until(lambda: bool(core.backend.sandboxes))
            await until(lambda: any(e.stdin_bytes for s in core.sandboxes for e in s.executions.values()))
            (room,) = core.backend.sandboxes.values()
            core.backend.release(next(iter(room.executions)))
        assert (await running).exit.code == 3


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("missing",), ExitReason.START_FAILED),
        (("oom",), ExitReason.OOM),
        (("exit", "7"), ExitReason.EXITED),
    ],
)
async def test_a_command_that_fails_is_an_exit(argv: tuple[str, ...], reason: ExitReason) -> None:
    async with Core() as core:
        assert (await once(core, *argv)).exit.reason is reason


async def test_a_timeout_ends_it() -> None:
    async with Core() as core:
        said = await once(core, "daemon", "sleep", timeout_seconds=0.01)
        assert said.exit.reason is ExitReason.TIMEOUT


async def test_beyond_the_limit_the_last_bytes_are_kept_or_the_first() -> None:
    async with Core() as core:
        said = await once(core, "print", "100000", output=1000)
        assert (said.stdout.data, said.stdout.truncated) == (pattern(100_000)[-1000:], True)
        assert (said.stdout.cut_begin, said.stdout.cut_end) == (True, False)
        said = await once(core, "spew", output=1000, kill=True)
        assert said.exit.reason is ExitReason.OUTPUT_LIMIT
        assert (said.stdout.data, said.stdout.cut_begin, said.stdout.cut_end) == (pattern(1000), False, True)
        assert not said.stderr.truncated


async def test_bytes_that_the_runtime_lost_count_as_truncated() -> None:
    async with Core() as core:
        said = await once(core, "torn", "10", "10")
        assert said.stdout.has_gap
        assert said.stdout.truncated


async def test_files_are_there_before_the_command_starts() -> None:
    async with Core() as core:
        files = (PlacedFile("a/b", b"x"), PlacedFile("/tmp/c", b"y"))
        assert (await once(core, "read-file", "/workspace/a/b", files=files)).stdout.data == b"x"
        assert (await once(core, "read-file", "/tmp/c", files=files)).stdout.data == b"y"


@pytest.mark.parametrize(
    ("backend", "wanted", "error"),
    [
        (
            NullBackend(capabilities=CAPABILITIES - {Capability.FILES}),
            shot("exit", "0", files=(PlacedFile("a", b""),)),
            UnsupportedByRuntime,
        ),
        (NullBackend(), shot("exit", "0", files=(PlacedFile("..", b""),)), InvalidRequest),
        (NullBackend(), shot(""), InvalidRequest),
        (NullBackend(capabilities=CAPABILITIES - {Capability.STDIN}), shot("cat", stdin=b"x"), CapabilityMissing),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_what_can_be_refused_is_before_anything_is_begun(
    backend: NullBackend, wanted: OneShot, error: type[BulkheadError]
) -> None:
    async with Core(backend=backend) as core:
        with pytest.raises(error):
            await run_once(core.sandboxes, wanted)
        assert backend.created == []
        assert list(core.sandboxes) == []


async def fails(core: Core, error: BulkheadError) -> None:
    with pytest.raises(type(error)) as raised:
        await run_once(core.sandboxes, shot("exit", "0"))
    assert raised.value is error
    assert core.backend.alive == []
    assert list(core.sandboxes) == []


async def test_what_fails_on_the_way_leaves_nothing() -> None:
    async with Core() as core:
        error: BulkheadError
        error = core.backend.create_error = LaunchFailed("mount_proc", "EPERM", "no")
        await fails(core, error)
        core.backend.create_error = None
        error = core.backend.execute_error = BackendUnavailable("process", "gone")
        await fails(core, error)


async def test_files_that_do_not_fit_leave_nothing() -> None:
    async with Core() as core:
        wanted = shot("exit", "0", files=(PlacedFile("a", b""), PlacedFile("b", bytes(2 * MIB))))
        wanted = replace(wanted, spec=replace(wanted.spec, limits=Limits(disk_mib=1)))
        with pytest.raises(DiskFull, match=r"^/files/1: "):
            await run_once(core.sandboxes, wanted)
        assert core.backend.alive == []
        assert list(core.sandboxes) == []


async def test_a_sandbox_that_is_deleted_while_its_files_are_put_is_a_wrong_state() -> None:
    async with Core() as core:
        gate = core.backend.create_gate = Gate()
        running = asyncio.ensure_future(run_once(core.sandboxes, shot("exit", "0", files=(PlacedFile("a", b""),))))
        await gate.reached.wait()
        gate.open()
        await until(lambda: bool(core.backend.sandboxes))
        (room,) = core.backend.sandboxes.values()
        hold = room.files.gate = Gate()
        await hold.reached.wait()
        (sandbox,) = core.sandboxes
        await sandbox.destroy()
        with pytest.raises(WrongState):
            await running


async def test_a_full_house_is_told() -> None:
    async with Core(sandboxes=1) as core:
        await core.create()
        with pytest.raises(CapacityExceeded):
            await run_once(core.sandboxes, shot("exit", "0"))


async def test_an_end_that_is_not_confirmed_is_an_error_and_is_tried_again() -> None:
    async with Core() as core:
        error = core.backend.destroy_error = BackendTimeout("process", "no answer")
        with pytest.raises(BackendTimeout) as raised:
            await run_once(core.sandboxes, shot("exit", "0"))
        assert raised.value is error
        (sandbox,) = core.sandboxes
        core.backend.destroy_error = None
        await sandbox.destroy()
        assert list(core.sandboxes) == []


async def test_a_caller_that_goes_away_at_any_moment_takes_the_sandbox_along() -> None:
    async with Core() as core:
        cut = [turns for turns in range(25) if await cancelled_after(turns, run_once(core.sandboxes, shot("sleep")))]
        assert cut == list(range(25))
        await until(lambda: core.backend.alive == [])
        await until(lambda: list(core.sandboxes) == [])


async def test_a_caller_that_goes_away_while_it_is_destroyed_does_not_stop_that() -> None:
    async with Core() as core:
        gate = core.backend.destroy_gate = Gate()
        running = asyncio.ensure_future(run_once(core.sandboxes, shot("exit", "0")))
        await gate.reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        gate.open()
        await until(lambda: core.backend.alive == [])


async def test_a_sandbox_that_somebody_deletes_leaves_the_output_to_its_run() -> None:
    async with Core() as core:
        running = asyncio.ensure_future(run_once(core.sandboxes, shot("trap", "SIGUSR1")))
        await until(lambda: any(e.logs["stdout"].total for s in core.sandboxes for e in s.executions.values()))  # type: ignore[index]  # a Channel is its name
        (sandbox,) = core.sandboxes
        await sandbox.destroy()
        said = await running
        assert (said.exit.reason, said.stdout.data) == (ExitReason.KILLED, b"ready\n")


async def test_a_sandbox_that_is_deleted_before_its_command_is_a_wrong_state() -> None:
    for files in ((), (PlacedFile("a", b""),)):
        async with Core() as core:
            gate = core.backend.create_gate = Gate()
            running = asyncio.ensure_future(run_once(core.sandboxes, shot("exit", "0", files=files)))
            await gate.reached.wait()
            (sandbox,) = core.sandboxes
            await sandbox.destroy()
            with pytest.raises(WrongState):
                await running


async def test_a_sandbox_that_is_lost_is_an_exit() -> None:
    async with Core() as core:
        running = asyncio.ensure_future(run_once(core.sandboxes, shot("sleep")))
        await until(lambda: any(room.executions for room in core.backend.sandboxes.values()))
        await core.backend.lose(next(iter(core.backend.sandboxes)))
        assert (await running).exit.reason is ExitReason.LOST


async def test_the_end_of_the_service_ends_it() -> None:
    core = Core()
    running = asyncio.ensure_future(run_once(core.sandboxes, shot("sleep")))
    await until(lambda: any(room.executions for room in core.backend.sandboxes.values()))
    await core.close()
    assert (await running).exit.reason is ExitReason.KILLED
