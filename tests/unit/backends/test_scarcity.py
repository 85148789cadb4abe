"""A gateway that has no descriptor left, and a launcher that is silent: an error of ours, and nothing stays open."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from app.backends.process import files as files_module
from app.backends.process import link as link_module
from app.backends.process.agent import Failed
from app.backends.process.backend import ProcessBackend
from app.backends.process.execution import ProcessExecution
from app.backends.process.files import FileRoom, ProcessFiles, translated
from app.backends.process.pipes import PipeBudget
from app.backends.process.sandbox import ProcessSandbox
from app.core.backend import Logs
from app.core.errors import BackendTimeout, BackendUnavailable, CapacityExceeded
from app.core.models import ExitReason, Storage, Terminal
from app.core.output import OutputLog
from app.launcher.protocol import DESTROY, EXECUTE, FINISH, OK, REFUSED, REPLY, TERMINAL, Writer
from app.launcher.protocol.files import UNKNOWN_KIND
from tests.kernel import host
from tests.told import told
from tests.unit.backends.test_link import Noted, Played, stage
from tests.unit.core.support import command, spec

ROOM = FileRoom(Storage.MEMORY, 1)
LONG = {"LONG": "x" * 100_000}  # too long for a packet: it goes in a memfd


def none_left(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def greeted(launcher: Played, noted: Noted) -> None:
    connecting = asyncio.create_task(noted.link.connect())
    await launcher.greet()
    await connecting


@asynccontextmanager
async def room(noted: Noted) -> AsyncIterator[tuple[ProcessSandbox, list[str]]]:
    """(a sandbox whose worker does nothing, what was told of its end)."""
    owner, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owner.setblocking(False)
    ends: list[str] = []
    sandbox = ProcessSandbox(
        noted.link,
        "one",
        owner,
        PipeBudget(),
        partial(ProcessFiles, room=ROOM),
        lambda: ends.append("ended"),
    )
    try:
        yield sandbox, ends
    finally:
        worker.close()
        sandbox.end("the test is over")
        await sandbox.destroy()


async def execute(sandbox: ProcessSandbox, **options: Any) -> ProcessExecution:
    wanted = command("true", stdin=True, env=LONG, **options)
    return await sandbox.execute("exe_1", wanted, Logs(OutputLog(1024), OutputLog(1024)))


@pytest.mark.parametrize("call", ["pipe2", "memfd_create"])
async def test_start_without_descriptors_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            before = host.own_descriptors()
            with monkeypatch.context() as patch:
                patch.setattr(os, call, none_left)
                with pytest.raises(
                    BackendUnavailable, match="no descriptors are left for a command: Too many open files"
                ):
                    await execute(sandbox)
            assert host.own_descriptors() == before


@pytest.mark.parametrize(("module", "call"), [(fcntl, "ioctl"), (os, "dup"), (os, "memfd_create")])
async def test_start_on_a_terminal_without_descriptors_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, call: str
) -> None:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            before = host.own_descriptors()
            starting = asyncio.create_task(execute(sandbox, tty=Terminal(24, 80)))
            kind, request, _ = await launcher.hear()
            here, there = os.openpty()
            launcher.say(Writer(REPLY).u32(request).u8(OK), (here,))
            os.close(here)
            os.close(there)
            with monkeypatch.context() as patch:
                patch.setattr(module, call, none_left)
                with pytest.raises(
                    BackendUnavailable, match="no descriptors are left for a command: Too many open files"
                ):
                    await starting
            assert kind == TERMINAL
            assert host.own_descriptors() == before


async def test_terminal_that_is_refused_is_a_start_that_failed(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            starting = asyncio.create_task(execute(sandbox, tty=Terminal(24, 80)))
            _, request, _ = await launcher.hear()
            launcher.say(Writer(REPLY).u32(request).u8(REFUSED).text("open_terminal").u32(errno.ENOSPC).text("full"))
            ended = await (await starting).wait()
    assert ended.reason is ExitReason.START_FAILED
    assert ended.detail == "step open_terminal failed: ENOSPC (full)"


@pytest.mark.parametrize(("module", "call"), [(os, "pipe2"), (socket, "socketpair")])
async def test_file_operation_without_descriptors_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, call: str
) -> None:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            before = host.own_descriptors()
            with monkeypatch.context() as patch:
                patch.setattr(module, call, none_left)
                with pytest.raises(
                    BackendUnavailable, match="no descriptors are left for a file operation: Too many open files"
                ):
                    await sandbox.files.stat(b"f")
            assert host.own_descriptors() == before
            assert sandbox._executions == {}


async def test_file_operation_without_a_launcher_leaves_no_descriptor(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            launcher.hang_up()
            launcher.listener.close()
            noted.link.close()
            before = host.own_descriptors()
            with pytest.raises(BackendUnavailable, match="the launcher is gone"):
                await sandbox.files.stat(b"f")
            assert host.own_descriptors() == before
            assert sandbox._executions == {}


async def test_start_without_a_launcher_leaves_no_descriptor(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            launcher.hang_up()
            launcher.listener.close()
            noted.link.close()
            before = host.own_descriptors()
            with pytest.raises(BackendUnavailable, match="the launcher is gone"):
                await execute(sandbox)
            assert host.own_descriptors() == before


async def test_request_that_cannot_wait_is_refused_and_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        waiting = [noted.link.post(Writer(FINISH), bytes(30_000), [])[0] for _ in range(50)]
        before = host.own_descriptors()
        real, made = os.dup, 0

        def one_only(descriptor: int) -> int:
            nonlocal made
            made += 1
            return real(descriptor) if made == 1 else none_left()

        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", one_only)
            with pytest.raises(BackendUnavailable, match="no descriptors are left to wait with"):
                noted.link.post(Writer(EXECUTE), b"", [0, 1])
        assert (made, host.own_descriptors()) == (2, before)
        for number in waiting:  # those before it are not harmed
            assert (await launcher.hear())[:2] == (FINISH, number)


@pytest.mark.parametrize("call", ["socket", "socketpair"])
async def test_create_without_descriptors_is_the_runtimes_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    launcher, backend = Played(tmp_path / "sock"), ProcessBackend(tmp_path / "sock")
    if call == "socketpair":
        ready = asyncio.create_task(backend.ready())
        await launcher.greet()
        await ready
    before = host.own_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(socket, call, none_left)
        with pytest.raises(BackendUnavailable, match="Too many open files"):
            await backend.create("sbx_1", spec())
    assert host.own_descriptors() == before
    await backend.aclose()
    launcher.hang_up()
    launcher.listener.close()


async def test_sandbox_that_the_launcher_has_no_room_for_may_be_asked_for_again(tmp_path: Path) -> None:
    launcher, backend = Played(tmp_path / "sock"), ProcessBackend(tmp_path / "sock")
    creating = asyncio.create_task(backend.create("sbx_1", spec()))
    await launcher.greet()
    _, request, _ = await launcher.hear()
    launcher.say(refusal(request, "the limit of 4 sandboxes is reached"))
    kind, request, _ = await launcher.hear()
    launcher.say(Writer(REPLY).u32(request).u8(OK))
    with pytest.raises(CapacityExceeded) as refused:
        await creating
    assert kind == DESTROY
    assert told(refused.value) == (
        *(429, "capacity_exceeded", "1"),
        "the launcher cannot make another sandbox: the limit of 4 sandboxes is reached; try again when one has ended",
    )
    await backend.aclose()
    launcher.hang_up()
    launcher.listener.close()


async def test_file_operation_that_the_launcher_has_no_room_for_may_be_asked_for_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            asking = asyncio.create_task(sandbox.files.stat(b"f"))
            _, request, _ = await launcher.hear()
            launcher.say(refusal(request, "the limit of 4 executions in one sandbox is reached"))
            with pytest.raises(CapacityExceeded) as refused:
                await asking
    assert told(refused.value) == (
        *(429, "capacity_exceeded", "1"),
        "the launcher starts no operation on files: the limit of 4 executions in one sandbox is reached; try again "
        "when one has ended",
    )


def refusal(request: int, detail: str) -> Writer:
    return Writer(REPLY).u32(request).u8(REFUSED).text("plan").u32(errno.EDQUOT).text(detail)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_file_operation_that_the_sandbox_has_no_room_for_may_be_asked_for_again(number: int) -> None:
    with pytest.raises(CapacityExceeded) as refused, translated(ROOM):
        raise Failed(number, UNKNOWN_KIND, b"f")
    assert told(refused.value) == (
        *(429, "capacity_exceeded", "1"),
        f"the sandbox has no room for this operation on files: {os.strerror(number)}; end something that runs in it",
    )
    assert refused.value.holder == "sandbox"


async def test_seventeenth_file_operation_of_a_sandbox_may_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_WAIT_SECONDS", 0.05)
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, _):
            asking = [asyncio.create_task(sandbox.files.stat(b"f")) for _ in range(17)]
            (first, *_), waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            error = first.exception()
            assert isinstance(error, CapacityExceeded)
            assert told(error) == (
                *(429, "capacity_exceeded", "1"),
                "this sandbox's limit of 16 operations on files at one time is reached; free some, or try again later",
            )
            assert len(waiting) == 16
            launcher.hang_up()
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_destroy_that_nobody_answered_is_none_and_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that hangs: the processes of the sandbox live on, and nobody may be told that they do not."""
    async with stage(tmp_path) as (launcher, noted):
        await greeted(launcher, noted)
        async with room(noted) as (sandbox, ends):
            with monkeypatch.context() as patch:
                patch.setattr(link_module, "_ANSWER_SECONDS", 0.05)
                with pytest.raises(BackendTimeout, match="did not answer"):
                    await sandbox.destroy()
                assert (await launcher.hear())[0] == DESTROY
            assert ends == []
            again = asyncio.create_task(sandbox.destroy())
            kind, request, _ = await launcher.hear()
            launcher.say(Writer(REPLY).u32(request).u8(OK))
            await again
            assert (kind, ends) == (DESTROY, ["ended"])
