"""The worker's end of the owner socket in hostile hands: the sandbox ends as lost, and nothing else happens."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.backends.process import execution as execution_module
from app.backends.process import sandbox as sandbox_module
from app.backends.process.execution import ProcessExecution
from app.backends.process.files import FileRoom, ProcessFiles
from app.backends.process.link import LauncherLink, LauncherReply
from app.backends.process.pipes import PipeBudget
from app.backends.process.sandbox import ProcessSandbox
from app.core.backend import Logs
from app.core.errors import WrongState
from app.core.models import Command, ExitReason, Storage
from app.core.output import OutputLog
from app.launcher.protocol import (
    CREATE,
    DESTROY,
    EXITED,
    RECORD,
    SIGNAL,
    START_FAILED,
    STARTED,
    CreatePlan,
    ProtocolError,
    Reader,
    Writer,
    unpack_command,
)
from tests.kernel import host
from tests.service import PATIENCE


class Launcher:
    """An honest launcher that answers everything with yes."""

    def __init__(self) -> None:
        self.requests: list[int] = []

    async def request(self, kind: int, body: bytes = b"", descriptors: object = ()) -> LauncherReply:
        self.requests.append(kind)
        await asyncio.sleep(0)
        return LauncherReply(Reader(bytes(Writer(0).u64(1).u64(1).u32(0).u8(0).data[1:])))

    def post(self, writer: Writer, body: bytes, descriptors: object) -> tuple[int, asyncio.Future[LauncherReply]]:
        return 1, asyncio.get_running_loop().create_future()

    def forget(self, number: int) -> None: ...


class Stage:
    def __init__(self) -> None:
        self.launcher = Launcher()
        owner, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        owner.setblocking(False)
        self.worker.settimeout(PATIENCE)
        self.ended = 0
        link = cast(LauncherLink, self.launcher)
        files = partial(ProcessFiles, room=FileRoom(Storage.MEMORY, 1))
        self.sandbox = ProcessSandbox(link, "one", owner, PipeBudget(), files, self._count_end)

    def _count_end(self) -> None:
        self.ended += 1

    async def run(self, *, started: bool = True) -> ProcessExecution:
        logs = Logs(OutputLog(1 << 16), OutputLog(1 << 16))
        task = asyncio.create_task(self.sandbox.execute("exe", Command(("true",)), logs))
        await asyncio.sleep(0)
        if started:
            self.say(STARTED, self.sandbox._number)
            return await task
        self.starting = task
        return cast(ProcessExecution, self.sandbox._executions[self.sandbox._number])

    def say(self, kind: int, number: int, first: int = 0, second: int = 0) -> None:
        self.worker.send(RECORD.pack(kind, number, first, second))

    def say_both(self, one: int, other: int) -> None:
        self.say(one, 1)
        self.say(other, 1)


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """At the end every descriptor of it is closed."""
    before = host.own_descriptors()
    made = Stage()
    try:
        yield made
    finally:
        await made.sandbox.destroy()
        made.worker.close()
    assert made.ended == 1
    assert host.own_descriptors() == before


async def check_lost(made: Stage, *running: ProcessExecution) -> None:
    assert await asyncio.wait_for(made.sandbox.lost(), PATIENCE) == "its worker broke the protocol"
    for each in running:
        assert (await asyncio.wait_for(each.wait(), PATIENCE)).reason is ExitReason.LOST
    assert made.launcher.requests.count(DESTROY) == 1
    with pytest.raises(WrongState):
        await made.sandbox.execute("late", Command(("true",)), Logs(OutputLog(1), OutputLog(1)))


WRONG: dict[str, Callable[[Stage], Any]] = {
    "too short": lambda s: s.worker.send(RECORD.pack(EXITED, 1, 0, 0)[:-1]),
    "too long": lambda s: s.worker.send(RECORD.pack(EXITED, 1, 0, 0) + b"\0"),
    "one byte": lambda s: s.worker.send(b"\0"),
    "4 KiB": lambda s: s.worker.send(bytes(4096)),
    "100 KiB": lambda s: s.worker.send(bytes(100_000)),
    "unknown kind": lambda s: s.say(99, 1),
    "the gateway's own word": lambda s: s.say(SIGNAL, 1, 9),
    "foreign execution": lambda s: s.say(EXITED, 3),
    "execution 0": lambda s: s.say(STARTED, 0),
    "started twice": lambda s: s.say(STARTED, 1),
    "failed after the start": lambda s: s.say(START_FAILED, 1, 2),
    "a negative errno": lambda s: s.say(START_FAILED, 1, -1),
    "exited twice": lambda s: s.say_both(EXITED, EXITED),
    "started after the exit": lambda s: s.say_both(EXITED, STARTED),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_record_that_no_worker_sends_ends_the_sandbox_as_lost(wrong: str) -> None:
    async with stage() as made:
        running = await made.run()
        neighbour = await made.run()
        WRONG[wrong](made)
        told_before = wrong in ("exited twice", "started after the exit")
        await check_lost(made, *([neighbour] if told_before else [running, neighbour]))
        if told_before:
            assert (await running.wait()).reason is ExitReason.EXITED


async def test_an_exit_before_the_start_ends_the_sandbox_as_lost() -> None:
    async with stage() as made:
        running = await made.run(started=False)
        made.say(EXITED, 1)
        await check_lost(made, running)
        assert await made.starting is running


@pytest.mark.parametrize("count", [1, 16, 17, 253])
async def test_attached_descriptors_end_the_sandbox_and_none_stays(count: int) -> None:
    read, write = os.pipe()
    async with stage() as made:
        running = await made.run()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write] * count))]
        made.worker.sendmsg([RECORD.pack(EXITED, 1, 0, 0)], rights)
        await check_lost(made, running)
        os.close(write)
        assert os.read(read, 1) == b"", "nobody holds the other end any more"
        os.close(read)
        write = os.open(os.devnull, os.O_RDONLY)  # the two numbers are taken again: the stage counts
        read = os.open(os.devnull, os.O_RDONLY)
    os.close(read)
    os.close(write)


async def test_a_flood_of_records_ends_at_the_first_wrong_one() -> None:
    """An execution has two records in its life, so there is nothing that could be sent twice, and no rate to limit."""
    async with stage() as made:
        running = await made.run()
        made.worker.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                made.say(STARTED, 1)
        await check_lost(made, running)


async def test_a_worker_that_closes_its_end_and_lives_on_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "LAST_WORD_SECONDS", 0.05)
    async with stage() as made:
        running = await made.run()
        made.worker.close()
        await check_lost(made, running)


async def test_a_worker_that_hides_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher has killed everything of the execution, and the worker says nothing."""
    monkeypatch.setattr(execution_module, "LAST_WORD_SECONDS", 0.05)
    async with stage() as made:
        running = await made.run()
        await running.kill()
        await check_lost(made, running)


async def test_a_worker_that_ended_with_a_signal_unread_did_not_break_the_protocol() -> None:
    async with stage() as made:
        running = await made.run()
        await running.signal(15)
        made.worker.close()
        for _ in range(5):
            await asyncio.sleep(0)
        made.sandbox.end("its worker ended with signal SIGKILL")
        assert await made.sandbox.lost() == "its worker ended with signal SIGKILL"
        assert (await running.wait()).reason is ExitReason.LOST


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=64),
            st.builds(
                RECORD.pack,
                st.sampled_from([STARTED, START_FAILED, EXITED, SIGNAL, 0, 255]),
                st.integers(0, 3),
                st.integers(-(2**31), 2**31 - 1),
                st.integers(-(2**31), 2**31 - 1),
            ),
        ),
        max_size=8,
    )
)
def test_any_records_end_at_most_their_own_sandbox(packets: list[bytes]) -> None:
    async def play() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with stage() as made:
            first, second = await made.run(), await made.run(started=False)
            for packet in packets:
                made.worker.send(packet)
            for _ in range(5):
                await asyncio.sleep(0)
            await made.sandbox.destroy()
            for each in (first, second):
                assert (await each.wait()).reason in set(ExitReason)
            await asyncio.wait([made.starting])
        assert failures == []

    asyncio.run(play())


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_the_decoder_raises_nothing_but_protocol_errors(noise: bytes, cut: int) -> None:
    plan = CreatePlan("one", "host", "default", 1, 2, 3, 4, False, ["/usr"], ["/tmp"])
    whole = bytes(plan.write(Writer(CREATE)).data)
    for data in (noise, whole[:cut], whole[: cut // 2] + noise, noise + whole):
        for decode in (lambda d: CreatePlan.read(Reader(d)), unpack_command, lambda d: Reader(d).text()):
            try:
                decode(data)
            except ProtocolError:
                continue
