"""The gateway's end of the launcher's socket, against a launcher that the test plays."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.backends.process.backend import ProcessBackend
from app.backends.process.link import LauncherLink, LauncherRefused
from app.core.errors import BackendUnavailable
from app.launcher.protocol import FINISH, HELLO, LOST, NETWORK, OK, REFUSED, REPLY, TERMINAL, VERSION, Reader, Writer
from tests.kernel import host

ABOUT = [f"protocol={VERSION}".encode(), b"layers=landlock", b"missing="]


class Played:
    """A launcher of which every word is the test's."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.setblocking(False)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.connection: socket.socket | None = None

    async def hear(self) -> tuple[int, int, Reader]:
        """(kind, request, the rest) of the next packet."""
        loop = asyncio.get_running_loop()
        if self.connection is None:
            self.connection, _ = await loop.sock_accept(self.listener)
        source = Reader(await loop.sock_recv(self.connection, 70_000))
        return source.u8(), source.u32(), source

    def say(self, packet: Writer | bytes, descriptors: tuple[int, ...] = ()) -> None:
        assert self.connection is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.connection.sendmsg([packet if isinstance(packet, bytes) else bytes(packet.data)], rights)

    async def greet(self, about: list[bytes] | None = None) -> None:
        kind, request, _ = await self.hear()
        assert kind == HELLO
        self.say(Writer(REPLY).u32(request).u8(OK).many(ABOUT if about is None else about))

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class Noted:
    def __init__(self, path: Path) -> None:
        self.lost: list[tuple[str, int]] = []
        self.gone = 0
        self.networks: list[tuple[int, int]] = []
        self.link = LauncherLink(path, lambda *told: self.lost.append(told), self._count, self._network)

    def _count(self) -> None:
        self.gone += 1

    def _network(self, uid: int, descriptor: int) -> None:
        self.networks.append((uid, descriptor))
        os.close(descriptor)


@asynccontextmanager
async def stage(tmp_path: Path) -> AsyncIterator[tuple[Played, Noted]]:
    before = host.own_descriptors()
    launcher, noted = Played(tmp_path / "sock"), Noted(tmp_path / "sock")
    try:
        yield launcher, noted
    finally:
        noted.link.close()
        launcher.hang_up()
        launcher.listener.close()
    assert host.own_descriptors() == before


async def test_nobody_is_connected_before_the_launcher_has_said_what_it_is(tmp_path: Path) -> None:
    """The second to come must not see an empty `about`."""
    async with stage(tmp_path) as (launcher, noted):
        tasks = [asyncio.create_task(noted.link.connect()) for _ in range(3)]
        kind, request, _ = await launcher.hear()
        assert kind == HELLO
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        launcher.say(Writer(REPLY).u32(request).u8(OK).many(ABOUT))
        await asyncio.gather(*tasks)
        assert noted.link.about["layers"] == "landlock"


async def test_a_greeting_that_was_cancelled_is_said_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        first = asyncio.create_task(noted.link.connect())
        await launcher.hear()
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.create_task(noted.link.connect())
        await launcher.greet()
        await second


@pytest.mark.parametrize("about", [[b"protocol=999"], [b"protocol=\xff"], []])
async def test_another_version_is_refused_and_hung_up_on(tmp_path: Path, about: list[bytes]) -> None:
    async with stage(tmp_path) as (launcher, noted):
        task = asyncio.create_task(noted.link.connect())
        await launcher.greet(about)
        with pytest.raises(BackendUnavailable, match="another version"):
            await task
        assert noted.gone == 1


async def test_no_launcher_is_said_with_the_kernels_word(tmp_path: Path) -> None:
    noted = Noted(tmp_path / "nothing")
    with pytest.raises(BackendUnavailable, match="does not answer: No such file"):
        await noted.link.connect()
    assert noted.gone == 0


async def ask(noted: Noted, launcher: Played) -> tuple[asyncio.Task[object], int]:
    if not noted.link.about:
        connecting = asyncio.create_task(noted.link.connect())
        await launcher.greet()
        await connecting
    task: asyncio.Task[object] = asyncio.create_task(noted.link.request(FINISH, b"body"))
    kind, request, rest = await launcher.hear()
    assert (kind, rest.rest()) == (FINISH, b"body")
    return task, request


async def test_answers_find_their_requests_in_any_order(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        one, first = await ask(noted, launcher)
        two, second = await ask(noted, launcher)
        launcher.say(Writer(REPLY).u32(second).u8(REFUSED).text("plan").u32(2).text("no such"))
        launcher.say(Writer(REPLY).u32(first).u8(OK).u8(7))
        assert (await one).source.u8() == 7  # type: ignore[attr-defined]
        with pytest.raises(LauncherRefused) as refused:
            await two
        assert (refused.value.step, refused.value.errno, refused.value.detail) == ("plan", 2, "no such")


async def test_the_end_of_the_launcher_ends_every_request_and_is_told_once(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        task, _ = await ask(noted, launcher)
        launcher.hang_up()
        with pytest.raises(BackendUnavailable, match="the launcher ended"):
            await task
        assert noted.gone == 1
        again = asyncio.create_task(noted.link.connect())
        await launcher.greet()
        await again


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff",
        b"\x10",
        bytes((REPLY, 1)),
        bytes(Writer(REPLY).u32(2).data),  # the number of the request that waits, and then nothing
        bytes(Writer(REPLY).u32(2).u8(REFUSED).text("plan").data),
        bytes((LOST, 200)),
        bytes((NETWORK, 1, 0, 0, 0)),
        bytes(69_000),
    ],
    ids=lambda packet: f"{packet[:3].hex()}-{len(packet)}",
)
async def test_a_launcher_that_speaks_nonsense_is_disconnected(tmp_path: Path, packet: bytes) -> None:
    async with stage(tmp_path) as (launcher, noted):
        task, request = await ask(noted, launcher)
        assert request == 2
        launcher.say(packet)
        async with asyncio.timeout(60):
            with pytest.raises(BackendUnavailable, match="the launcher ended"):
                await task
        assert noted.gone == 1


async def test_descriptors_that_nobody_asked_for_are_closed(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        task, request = await ask(noted, launcher)
        null = os.open(os.devnull, os.O_RDONLY)
        launcher.say(Writer(LOST).text("one").i32(9), (null,) * 3)
        launcher.say(Writer(NETWORK).u32(77), (null,))
        launcher.say(Writer(REPLY).u32(request).u8(OK), (null,) * 16)
        os.close(null)
        await task
        assert noted.lost == [("one", 9)]
        assert [uid for uid, _ in noted.networks] == [77]


async def test_descriptor_that_was_asked_for_is_the_callers(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        connecting = asyncio.create_task(noted.link.connect())
        await launcher.greet()
        await connecting
        for number in (1, 0, 2):
            task = asyncio.create_task(noted.link.request(TERMINAL, due=1))
            _, request, _ = await launcher.hear()
            null = os.open(os.devnull, os.O_RDONLY)
            launcher.say(Writer(REPLY).u32(request).u8(OK), (null,) * number)
            os.close(null)
            if number == 1:
                os.close(*(await task).descriptors)
            else:
                with pytest.raises(BackendUnavailable, match=f"gave {number} descriptors and not 1"):
                    await task


async def test_descriptor_for_who_has_just_gone_is_closed(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        connecting = asyncio.create_task(noted.link.connect())
        await launcher.greet()
        await connecting
        task = asyncio.create_task(noted.link.request(TERMINAL, due=1))
        _, request, _ = await launcher.hear()
        null = os.open(os.devnull, os.O_RDONLY)
        launcher.say(Writer(REPLY).u32(request).u8(OK), (null,))
        os.close(null)
        noted.link._readable()  # the answer is there, and the task has not run yet
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_answer_that_comes_too_late_is_nobodys(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        task, request = await ask(noted, launcher)
        task.cancel()
        await asyncio.wait([task])
        launcher.say(Writer(REPLY).u32(request).u8(OK))
        other, number = await ask(noted, launcher)
        launcher.say(Writer(REPLY).u32(number).u8(OK))
        await other


async def test_requests_wait_for_room_with_descriptors_of_their_own(tmp_path: Path) -> None:
    async with stage(tmp_path) as (launcher, noted):
        connecting = asyncio.create_task(noted.link.connect())
        await launcher.greet()
        await connecting
        read, write = os.pipe()
        numbers = [noted.link.post(Writer(FINISH), bytes(30_000), [write])[0] for _ in range(50)]
        os.close(write)
        for number in numbers:
            kind, request, _ = await launcher.hear()
            assert (kind, request) == (FINISH, number)
            noted.link.forget(number)
        assert os.read(read, 1) == b"", "all copies are closed"
        os.close(read)


async def test_without_a_launcher_the_backend_says_why() -> None:
    backend = ProcessBackend(None, "this host cannot")
    with pytest.raises(BackendUnavailable, match="this host cannot"):
        await backend.ready()
    await backend.aclose()
