"""What is kept of sandboxes and executions: so many bytes in all, a share for each, and given back at the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core import timeslices
from app.core.errors import CapacityExceeded
from app.core.models import SandboxState
from app.core.output import CHUNK, MEMORY_WINDOW, OutputLog, Spill
from app.core.registry import Registry
from app.core.retention import LEAST, EndedOutput
from app.core.sandboxes import Capacity, Sandboxes
from app.spill import SpillFolder
from tests.null_backend import NullBackend, pattern
from tests.unit.core.support import Core, Notes, spec, text, until

MIB = 1024 * 1024


def grown_by(ended: EndedOutput, open_spill: Callable[[int], Spill]) -> int:
    """Bytes of memory that forty logs of 256 KiB leave behind."""
    logs = [OutputLog(64 * MIB, open_spill=open_spill) for _ in range(40)]
    gc.collect()
    tracemalloc.start()
    try:
        for log in logs:
            for number in range(4):
                log.append(bytes([number]) * (MEMORY_WINDOW // 4))
            log.close()
            ended.add("a", log)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        for log in logs:
            ended.discard("a", log)


@pytest.mark.parametrize(("size", "least", "most"), [(MIB, MIB // 2, 2 * MIB), (100 * MIB, 10 * MIB, 11 * MIB)])
def test_ended_output_leaves_memory_for_the_disk(tmp_path: Path, size: int, least: int, most: int) -> None:
    """With much memory allowed it stays: what is measured is what it seems."""
    folder, ended = SpillFolder(tmp_path, 100 * MIB), EndedOutput(size)
    assert least <= grown_by(ended, folder.of("a").open) <= most
    assert (folder.budget.used, ended.used) == (0, 0)
    folder.close()


async def test_output_that_left_memory_reads_as_before(tmp_path: Path) -> None:
    folder = SpillFolder(tmp_path, 100 * MIB)
    async with Core(folder.of, ended_output_mib=0) as core:
        sandbox = await core.create()
        execution = await core.start(sandbox, "echo", "hello")
        await execution.wait()
        assert [log.in_memory for log in execution.logs.values()] == [0, 0]
        assert text(execution) == b"hello\n"
        assert folder.budget.used > 0
        await sandbox.destroy()
        assert folder.budget.used == 0


async def test_without_a_disk_the_oldest_ended_output_is_dropped_and_the_newest_kept() -> None:
    async with Core(ended_output_mib=1) as core:
        sandbox = await core.create()
        ended = [await core.start(sandbox, "print", str(MEMORY_WINDOW)) for _ in range(6)]
        for execution in ended:
            await execution.wait()
        assert [execution.outputs.stdout.dropped for execution in ended] == [MEMORY_WINDOW] * 2 + [0] * 4


@pytest.mark.parametrize("ends", ["first", "last"])
async def test_greedy_sandboxes_cost_a_quiet_one_no_ended_output_though_the_disk_is_full(
    tmp_path: Path, ends: str
) -> None:
    folder = SpillFolder(tmp_path, 4 * MIB)
    async with Core(folder.of, ended_output_mib=4) as core:
        quiet = await core.create()
        printed = await core.start(quiet, "silent-then", "print", str(200 * 1024))
        if ends == "first":
            core.backend.release(printed.id)
            await printed.wait()
        greedy = [await core.create() for _ in range(8)]
        for size in (MIB, MEMORY_WINDOW):  # the disk is full before memory is
            for sandbox in greedy * 8:
                with contextlib.suppress(CapacityExceeded):
                    await (await core.start(sandbox, "print", str(size))).wait()
        logs = [execution.outputs.stdout for sandbox in greedy for execution in sandbox.executions.values()]
        assert sum(log.dropped or 0 for log in logs) > 8 * MIB  # there was more than memory and disk take
        assert not folder.budget.fits(quiet.id, 200 * 1024)
        if ends == "last":
            core.backend.release(printed.id)
            await printed.wait()
        assert printed.outputs.stdout.dropped == 0
        log = printed.outputs.stdout
        assert b"".join(log.read(at) for at in range(0, log.total, CHUNK)) == pattern(200 * 1024)
    folder.close()


def test_small_outputs_count_for_a_block_so_that_few_make_room_for_a_large_one() -> None:
    ended, logs = EndedOutput(MIB), [OutputLog(MIB) for _ in range(1000)]
    for log in logs:
        log.append(b"x")
        log.close()
        ended.add("a", log)
    assert sum(log.in_memory for log in logs) == ended.used // LEAST == MIB // LEAST


async def test_the_end_of_a_sandbox_with_many_records_leaves_turns_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeslices, "SECONDS", 0.0)  # each record uses up a slice
    async with Core() as core:
        sandbox = await core.create()
        for _ in range(20):
            await (await core.start(sandbox, "exit", "0")).wait()
        core.backend.sandboxes[sandbox.id].executions.clear()
        ending, turns = asyncio.ensure_future(sandbox.destroy()), 0
        await until(lambda: sandbox.state is SandboxState.DESTROYED)
        while not ending.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 20


# --- commands


async def test_commands_of_one_sandbox_leave_room_for_another_and_the_oldest_ended_one_is_forgotten() -> None:
    async with Core(commands_mib=1) as core:
        greedy, other = await core.create(), await core.create()
        for _ in range(10):
            last = await core.start(greedy, "exit", "0", "x" * 100_000)
            await last.wait()
        assert 2 <= len(greedy.executions) <= 5
        assert list(greedy.executions.values())[-1] is last
        with pytest.raises(
            CapacityExceeded, match="this sandbox has 0 of the service's 1 MiB of stored commands and"
        ) as full:
            for _ in range(10):
                await core.start(greedy, "sleep", "x" * 100_000)
        assert full.value.holder == "sandbox"
        await core.start(other, "echo", "x" * 100_000)
        await greedy.destroy()
        await core.start(other, "echo", "x" * 125_000, "x" * 125_000)


async def test_what_is_not_kept_any_more_is_not_counted() -> None:
    async with Core(commands_mib=1) as core:
        kept = core.sandboxes._resources.commands
        sandbox = await core.create(spec(env={"A": "x" * 1000}))
        before = kept.used
        await (await core.start(sandbox, "exit", "0", env={"B": "y" * 100_000})).wait()
        assert kept.used - before < 20_000  # the record stays, the environment does not
        await sandbox.destroy()
        assert kept.used == 0


async def test_records_of_destroyed_sandboxes_have_a_bound_too_and_the_oldest_makes_room() -> None:
    async with Core(commands_mib=1) as core:
        for number in range(8):
            sandbox = await core.create(spec(), f"s{number}")
            await (await core.start(sandbox, "exit", "0", "x" * 125_000, "x" * 125_000)).wait()
            await sandbox.destroy()
        assert [sandbox.id for sandbox in core.sandboxes] == ["s5", "s6", "s7"]


@pytest.mark.parametrize("numbers", [{"records": 6}, {"commands_mib": 1}], ids=["number", "bytes"])
async def test_records_of_a_client_that_leaves_many_do_not_push_out_those_of_another(numbers: dict[str, Any]) -> None:
    """Each record keeps 240 KiB of the 1 MiB."""

    async def leave(client: str, name: str) -> None:
        sandbox, _ = core.sandboxes.create(spec(), name, client)
        await core.sandboxes.wait_created(sandbox, 60)
        await (await core.start(sandbox, "exit", "0", "x" * 120_000, "x" * 120_000)).wait()
        await sandbox.destroy()

    async with Core(**numbers) as core:
        await leave("quiet", "mine")
        for number in range(20):
            await leave("greedy", f"g{number}")
        left = [sandbox.id for sandbox in core.sandboxes]
        assert left[0] == "mine"
        assert left[-1] == "g19"
        assert len(left) < 10


# --- sandboxes


async def test_sandboxes_of_one_client_leave_room_for_another() -> None:
    sandboxes = Sandboxes(Registry([NullBackend()], default="process"), Capacity(sandboxes=4), Notes(), shared=True)
    first, _ = sandboxes.create(spec(), client="a")
    sandboxes.create(spec(), client="a")
    with pytest.raises(
        CapacityExceeded, match="this client has 2 of the service's 4 sandboxes and may have at most 2 now"
    ):
        sandboxes.create(spec(), client="a")
    sandboxes.create(spec(), client="b")
    await sandboxes.wait_created(first, 60)
    await first.destroy()
    sandboxes.create(spec(), client="a")
    await sandboxes.aclose()


async def test_a_file_operation_of_one_sandbox_leaves_room_for_another() -> None:
    async with Core(transfers=4, archives=2) as core:
        greedy, other = await core.create(), await core.create()
        transfers = core.sandboxes.transfers
        async with transfers.files(greedy.id), transfers.unpacking(greedy.id):
            with pytest.raises(
                CapacityExceeded,
                match="has 2 of the service's 4 operations on files at one time and may have at most 2 now",
            ):
                async with transfers.files(greedy.id):
                    pass
            async with transfers.files(other.id):
                pass
            with pytest.raises(
                CapacityExceeded,
                match="has 1 of the service's 2 archives that are unpacked at one time and may have at most 1 now",
            ):
                async with transfers.unpacking(greedy.id):
                    pass
            async with transfers.unpacking(other.id):
                pass
