"""What a test can make go wrong, and how a client then sees it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.boxlite.client import Client, box_double
from tests.boxlite.double import Answer, Attach, Drop, Failure, Fault, Route, Stall, drip, endless

LIST = "/v1/boxes"
LARGE = b"\x01" + b"x" * 2_000_000


async def test_an_answer_comes_instead_of_the_own_one_as_often_as_said() -> None:
    async with box_double() as double, Client(double) as client:
        double.faults.on(Route.LIST, Answer.failure("upstream_unavailable"), times=2)
        double.faults.on(Route.LIST, Answer.text("<h1>Bad gateway</h1>", 502), times=1)
        assert [(await client.ask("GET", LIST)).status_code for _ in range(4)] == [503, 503, 502, 200]
        assert [request.route for request in double.requests] == [Route.LIST] * 4
        double.faults.on(Route.LIST, Answer.json({"boxes": "many"}))
        double.faults.clear()
        assert (await client.ok("GET", LIST)) == {"boxes": []}


async def test_nothing_is_done_where_the_answer_is_made_up() -> None:
    async with box_double() as double, Client(double) as client:
        double.faults.on(Route.CREATE, Answer.failure("internal"), times=1)
        assert (await client.ask("POST", LIST, {"name": "one"})).status_code == 500
        assert not double.boxes
        assert double.sent(Route.CREATE)[0].json == {"name": "one"}


@pytest.mark.parametrize(("done", "made"), [(False, 0), (True, 1)])
async def test_a_dropped_connection_before_and_after_the_work(done: bool, made: int) -> None:
    async with box_double() as double, Client(double) as client:
        double.faults.on(Route.CREATE, Drop(done=done), times=1)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.ask("POST", LIST, {"name": "one"})
        assert len(double.boxes) == made


async def test_a_stalled_answer_comes_when_the_test_says_so() -> None:
    async with box_double() as double, Client(double) as client:
        stall = Stall(asyncio.Event(), done=True)
        double.faults.on(Route.CREATE, stall, times=1)
        asked = asyncio.create_task(client.ask("POST", LIST, {"name": "one"}))
        await stall.reached.wait()
        assert len(double.boxes) == 1
        assert not asked.done()
        assert stall.until is not None
        stall.until.set()
        assert (await asked).status_code == 201


async def test_a_stall_without_an_event_never_answers() -> None:
    async with box_double() as double, Client(double) as client:
        double.faults.on(Route.LIST, Stall())
        with pytest.raises(httpx.ReadTimeout):
            await client.ask("GET", LIST, timeout=0.2)


async def test_bodies_that_do_not_end_or_come_in_drops() -> None:
    async with box_double() as double, Client(double) as client:
        double.faults.on(Route.LIST, Answer.body(lambda: drip(b'{"boxes":[]}', 0.001)), times=1)
        assert (await client.ok("GET", LIST)) == {"boxes": []}
        double.faults.on(Route.LIST, Answer.body(lambda: endless(b" " * 65536, b'{"boxes":[')), times=1)
        size = 0
        async with client.stream("GET", LIST) as answer:
            async for piece in answer.aiter_bytes():
                size += len(piece)
                if size > 10_000_000:
                    break
        assert (await client.ok("GET", LIST)) == {"boxes": []}  # the client that left is no loss


async def test_a_head_that_lies() -> None:
    async with box_double() as double, Client(double) as client:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
        double.faults.on(Route.LIST, Answer.verbatim(head, b'{"boxes":[]}'), times=1)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.ask("GET", LIST)


async def test_refused_connections_and_a_restart_on_the_same_port() -> None:
    async with box_double() as double, Client(double) as client:
        url = double.url
        await double.refuse_connections()
        with pytest.raises(httpx.ConnectError):
            await client.ask("GET", LIST)
        await double.restart()
        assert double.url == url
        assert (await client.ok("GET", LIST)) == {"boxes": []}


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (None, 503, "engine_unavailable"),
        (Failure("storage_error", "storage error: Failed to pull image"), 500, "storage_error"),
        (Failure("image_pull_failed", "image error: DiffID mismatch"), 422, "image_pull_failed"),
    ],
)
async def test_boots_that_fail(failure: Failure | None, status: int, code: str) -> None:
    async with box_double() as double, Client(double) as client:
        box = await double.seed(cmd=["sleep", "infinity"])
        double.faults.fail_boot(2, failure)
        for _ in range(2):
            answer = await client.ask("POST", f"/v1/boxes/{box.id}/start")
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (await client.ok("GET", LIST))["boxes"][0]["status"] == "failed"
        assert (await client.ok("POST", f"/v1/boxes/{box.id}/start"))["status"] == "running"


async def attach_with(fault: Fault, *argv: str) -> tuple[list[str | bytes], int | None]:
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        double.faults.on(Route.ATTACH, fault, times=1)
        said = await client.follow(await client.execute(box, *argv))
        return said.frames, said.close_code


async def test_frames_that_nobody_expects() -> None:
    junk: tuple[str | bytes, ...] = (
        "no json",
        '{"type":"hello"}',
        b"\x03other channel",
        b"",
        b"\x01" + b"x" * 2_000_000,
    )
    frames, code = await attach_with(Attach(first=junk), "true")
    assert frames == [*junk, '{"exit_code":0,"type":"exit"}']
    assert code == 1005


@pytest.mark.parametrize(
    ("fault", "frames", "code"),
    [
        (Attach(cut_after=2), [b"\x01one\n", b"\x01two\n"], 1006),
        (Attach(exit=False), [b"\x01one\n", b"\x01two\n", b"\x01three\n"], 1005),
        (Attach(output=False), ['{"exit_code":0,"type":"exit"}'], 1005),
    ],
)
async def test_sockets_that_end_in_another_way(fault: Attach, frames: list[Any], code: int) -> None:
    script = "for w in one two three; do echo $w; sleep 0.05; done"
    assert await attach_with(fault, "sh", "-c", script) == (frames, code)


async def test_an_exit_without_a_close() -> None:
    async with box_double() as double, Client(double) as client:
        path = await client.execute(await client.box(), "true")
        double.faults.on(Route.ATTACH, Attach(close=False), times=1)
        async with client.attached(path) as socket:
            assert await socket.recv() == '{"exit_code":0,"type":"exit"}'
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(socket.recv(), 0.2)


async def test_an_upgrade_that_is_refused_or_never_answered() -> None:
    async with box_double() as double, Client(double) as client:
        path = await client.execute(await client.box(), "true")
        double.faults.on(Route.ATTACH, Answer.failure("internal"), times=1)
        with pytest.raises(InvalidStatus):
            async with client.attached(path):
                pass
        double.faults.on(Route.ATTACH, Stall(), times=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), client.attached(path):
                pass
        assert (await client.follow(path)).exit_code == 0


async def test_a_crash_breaks_every_socket_without_a_close() -> None:
    async with box_double() as double, Client(double) as client:
        path = await client.execute(await client.box(), "sleep", "60")
        async with client.attached(path) as socket:
            await double.crash()
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is None
        with pytest.raises(httpx.ConnectError):
            await client.ask("GET", path)
        await double.restart()
        assert (await client.ask("GET", path)).json()["error"]["code"] == "not_found"
