"""Executions of the runtime `process`, against a launcher and a worker that the test plays."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.backends.process import link as link_module
from app.backends.process.execution import ProcessExecution
from app.backends.process.sandbox import ProcessSandbox
from app.core.backend import Logs
from app.core.errors import BackendRefused, BackendTimeout, BackendUnavailable, WrongState
from app.core.models import Exit, ExitReason, ResourceUsage, Terminal
from app.core.output import OutputLog
from app.launcher.protocol import EXECUTE, FINISH, KILL, OK, REFUSED, REPLY, TERMINAL, USAGE, Reader, Writer
from tests.kernel import host
from tests.unit.backends.test_link import Played, stage
from tests.unit.backends.test_scarcity import greeted, room
from tests.unit.core.support import command


def begin(sandbox: ProcessSandbox, tty: Terminal | None = None) -> asyncio.Task[ProcessExecution]:
    logs = Logs(OutputLog(1024), OutputLog(1024))
    return asyncio.create_task(sandbox.execute("exe_1", command("true", tty=tty), logs))


def number_in(source: Reader) -> int:
    source.text(64)
    return source.u32()


def give_terminal(launcher: Played, request: int) -> None:
    here, there = os.openpty()
    launcher.say(Writer(REPLY).u32(request).u8(OK), (here,))
    os.close(here)
    os.close(there)


def refuse(launcher: Played, request: int, number: int) -> None:
    launcher.say(Writer(REPLY).u32(request).u8(REFUSED).text("plan").u32(number).text("no"))


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[Played, ProcessExecution]]:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            starting = begin(sandbox)
            assert (await launcher.hear())[0] == EXECUTE
            (execution,) = sandbox._executions.values()
            assert isinstance(execution, ProcessExecution)
            execution.on_started()
            yield launcher, await starting
            launcher.hang_up()


async def test_whoever_waits_for_the_end_goes_on_in_the_next_turn_of_the_loop(tmp_path: Path) -> None:
    """And one that gives up takes nothing from the others."""
    async with running(tmp_path) as (_, execution):
        gives_up, waiting = (asyncio.create_task(execution.wait()) for _ in range(2))
        await asyncio.sleep(0)
        gives_up.cancel()
        await asyncio.wait([gives_up])
        execution._end(Exit(ExitReason.EXITED, code=3))
        await asyncio.sleep(0)
        assert waiting.done()
        assert (await waiting).code == 3


async def test_command_that_overtakes_one_on_a_terminal_has_the_lower_number(tmp_path: Path) -> None:
    """The launcher takes only numbers that rise."""
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            first = begin(sandbox, Terminal(24, 80))
            kind, wanted, _ = await launcher.hear()
            assert kind == TERMINAL
            second = begin(sandbox)
            kind, _, source = await launcher.hear()
            assert (kind, number_in(source)) == (EXECUTE, 1)
            give_terminal(launcher, wanted)
            kind, _, source = await launcher.hear()
            assert (kind, number_in(source)) == (EXECUTE, 2)
            for execution in sandbox._executions.values():
                assert isinstance(execution, ProcessExecution)
                execution.on_started()
            await asyncio.gather(first, second)
            launcher.hang_up()


async def test_terminal_of_a_sandbox_that_ended_meanwhile_is_closed(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            starting = begin(sandbox, Terminal(24, 80))
            _, wanted, _ = await launcher.hear()
            sandbox.end("its worker died")
            before = host.own_descriptors()
            give_terminal(launcher, wanted)
            with pytest.raises(WrongState, match="has ended"):
                await starting
            assert host.own_descriptors() == before
            assert sandbox._executions == {}


async def test_usage_of_a_silent_launcher_is_an_error_while_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_ANSWER_SECONDS", 0.05)
    async with running(tmp_path) as (launcher, execution):
        with pytest.raises(BackendTimeout, match="did not answer"):
            await execution.usage()
        assert (await launcher.hear())[0] == USAGE


async def test_usage_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    async with running(tmp_path) as (launcher, execution):
        asking = asyncio.create_task(execution.usage())
        _, request, _ = await launcher.hear()
        launcher.say(Writer(REPLY).u32(request).u8(OK).u8(1))
        with pytest.raises(BackendUnavailable, match="does not speak its protocol"):
            await asking


async def test_usage_that_is_refused_is_an_error_unless_nothing_is_left(tmp_path: Path) -> None:
    async with running(tmp_path) as (launcher, execution):
        asking = asyncio.create_task(execution.usage())
        refuse(launcher, (await launcher.hear())[1], errno.EMFILE)
        with pytest.raises(BackendRefused, match="the usage is not known: no"):
            await asking
        asking = asyncio.create_task(execution.usage())
        refuse(launcher, (await launcher.hear())[1], errno.ENOENT)
        execution.on_exited(0)
        kind, request, _ = await launcher.hear()
        assert kind == FINISH
        launcher.say(Writer(REPLY).u32(request).u8(OK).u64(2_000_000_000).u64(4096).u32(0).u8(0).text("").text(""))
        final = ResourceUsage(0, 4096, 2.0, processes=0, open_files=0)
        assert await asking == final
        launcher.hang_up()
        launcher.listener.close()
        assert await execution.usage() == final, "the end is known without the launcher"


async def test_verdict_stays_when_the_kill_after_it_is_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as (launcher, execution):
        execution.on_exited(9)
        _, request, _ = await launcher.hear()
        monkeypatch.setattr(link_module, "_ANSWER_SECONDS", 0.05)
        said = Writer(REPLY).u32(request).u8(OK).u64(1_000_000_000).u64(4096).u32(0).u8(0)
        launcher.say(said.text("cpu_limit").text("used all"))
        ended = await execution.wait()
        assert (await launcher.hear())[0] == KILL
        assert (ended.reason, ended.detail, ended.cpu_seconds) == (ExitReason.CPU_LIMIT, "used all", 1.0)
