from __future__ import annotations

import asyncio

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from tests.unit.api.service import Service, frames_of, text_of
from tests.unit.api.streams import WINDOW, execution_of, refusal, until


async def test_stdin_over_the_stream_reaches_the_program_and_its_end_too() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        async with live.stream(path, "?stdin=true") as socket:
            await socket.send(b"one ")
            await socket.send(b"two")
            await socket.send('{"type":"stdin_eof"}')
            texts, channels = await frames_of(socket)
        assert channels[1] == b"one two"
        assert texts[-1]["exit_code"] == 0


async def test_start_frame_says_how_much_stdin_was_accepted() -> None:
    async with Service().served() as live:
        path = await live.start("sleep", stdin="open")
        async with live.stream(path, "?stdin=true") as socket:
            await socket.send(b"12345")
            await until(live, path, stdin_bytes=5)
        await until(live, path, _lease=None)
        async with live.stream(path, "?stdin=true") as socket:
            assert (await text_of(socket))["stdin_bytes"] == 5


async def test_second_holder_of_stdin_is_refused_before_the_upgrade() -> None:
    async with Service().served() as live:
        path = await live.start("sleep", stdin="open")
        async with live.stream(path, "?stdin=true"):
            problem = await refusal(live, path, "?stdin=true")
            assert problem["type"] == "/problems/conflict"
            assert execution_of(live, path).viewers == 1


async def test_stdin_of_an_execution_without_one_is_refused_before_the_upgrade() -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        problem = await refusal(live, path, "?stdin=take")
        assert problem["type"] == "/problems/wrong_state"
        assert problem["state"] == "running"
        assert execution_of(live, path).viewers == 0


async def test_take_over_closes_the_old_holder_with_4001_and_the_new_one_feeds() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        old = await live.stream(path, "?stdin=true")
        assert (await text_of(old))["type"] == "start"
        async with live.stream(path, "?stdin=take") as new:
            with pytest.raises(ConnectionClosedError):
                await frames_of(old)
            assert (old.close_code, old.close_reason) == (4001, "another stream has taken stdin")
            await new.send(b"mine")
            await new.send('{"type":"stdin_eof"}')
            _, channels = await frames_of(new)
        assert channels[1] == b"mine"


async def test_take_over_works_while_the_old_holder_is_stuck() -> None:
    async with Service().served() as live:
        path = await live.start("silent-then", "cat", stdin="open")
        old = await live.stream(path, "?stdin=true")
        await old.send(b"a" * WINDOW)
        await until(live, path, stdin_bytes=WINDOW)
        async with live.stream(path, "?stdin=take") as new:
            with pytest.raises(ConnectionClosedError):
                await frames_of(old)
            assert (old.close_code, old.close_reason) == (4001, "another stream has taken stdin")
            live.service.backend.release(path.rsplit("/", 1)[1])
            await new.send(b"b")
            await new.send('{"type":"stdin_eof"}')
            _, channels = await frames_of(new)
        assert channels[1] == b"a" * WINDOW + b"b"


async def test_stdin_from_a_stream_that_does_not_hold_it_is_a_problem_and_a_close() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        async with live.stream(path) as socket:
            await socket.send(b"not mine")
            assert (await text_of(socket))["type"] == "start"
            frame = await text_of(socket)
            assert frame["type"] == "problem"
            assert frame["problem"]["type"] == "/problems/conflict"
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert (socket.close_code, socket.close_reason) == (
                1008,
                "this stream does not hold the stdin of the execution",
            )
        assert execution_of(live, path).stdin_bytes == 0


async def test_a_program_that_does_not_read_stops_the_socket_from_being_read() -> None:
    async with Service().served() as live:
        path = await live.start("sleep", stdin="open")
        socket = await live.stream(path, "?stdin=true")
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while True:
                await socket.send(b"x" * 65536)
                sent += 65536

        pouring = asyncio.create_task(pour())
        await until(live, path, stdin_bytes=WINDOW)
        async with asyncio.timeout(60):
            before = -1
            while sent != before:  # until what the kernel buffers for the socket is full too
                before = sent
                assert (await live.client.get("/healthz")).status_code == 200
        assert execution_of(live, path).stdin_bytes == WINDOW
        pouring.cancel()
        socket.transport.abort()


@pytest.mark.parametrize(
    ("frame", "pointer"),
    [
        ("nonsense", ""),
        ("[1]", ""),
        ('{"type":"resize","rows":0,"cols":2}', "/rows"),
        ('{"type":"resize","rows":1,"cols":65536}', "/cols"),
        ('{"type":"resize","rows":"1","cols":2}', "/rows"),
        ('{"type":"resize","rows":1}', "/cols"),
        ('{"type":"resize","rows":1,"cols":2,"depth":3}', "/depth"),
        ('{"rows":1,"cols":2}', "/type"),
        ('{"type":7}', "/type"),
        ("{}", "/type"),
        ('{"type":"stdin_eof","more":1}', "/more"),
        ('{"type":"signal"}', "/signal"),
        ('{"type":"signal","sig":2,"signal":"SIGINT"}', "/sig"),
        ('{"type":"signal","signal":2}', "/signal"),
        ('{"type":"signal","signal":"SIGINT","signal":"SIGKILL"}', ""),
        ('{"signal":"SIGNOTHING"}', "/signal"),
        ("[" * 60_000, ""),
    ],
)
async def test_a_frame_that_is_not_understood_gets_a_problem_frame_and_changes_nothing(
    frame: str, pointer: str
) -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        async with live.stream(path, "?stdin=true") as socket:
            await text_of(socket)
            await socket.send(frame)
            answer = await text_of(socket)
            assert answer["type"] == "problem"
            assert answer["problem"]["type"] == "/problems/invalid_request"
            assert answer["problem"]["errors"][0]["pointer"] == pointer
            await socket.send(b"still here")
            await socket.send('{"type":"stdin_eof"}')
            _, channels = await frames_of(socket)
        assert channels[1] == b"still here"


async def test_a_text_frame_over_64_kib_gets_a_problem_frame() -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        async with live.stream(path) as socket:
            await text_of(socket)
            await socket.send("é" * 40_000)
            problem = (await text_of(socket))["problem"]
        assert problem["type"] == "/problems/payload_too_large"
        assert problem["limit"] == 65536


async def test_stdin_after_its_end_gets_a_problem_frame_and_the_stream_goes_on() -> None:
    async with Service().served() as live:
        path = await live.start("trap", stdin="open")
        async with live.stream(path, "?stdin=true") as socket:
            await socket.send('{"type":"stdin_eof"}')
            await socket.send(b"late")
            await socket.send('{"type":"stdin_eof"}')
            await socket.send('{"type":"signal","signal":"SIGTERM"}')
            texts, _ = await frames_of(socket)
        kinds = [t["problem"]["type"] for t in texts if t["type"] == "problem"]
        assert kinds == ["/problems/wrong_state", "/problems/wrong_state"]
        assert texts[-1]["exit_code"] == -15


async def test_end_of_stdin_from_a_stream_that_does_not_hold_it_is_a_problem_frame() -> None:
    async with Service().served() as live:
        path = await live.start("sleep", stdin="open")
        async with live.stream(path) as socket:
            await text_of(socket)
            await socket.send('{"type":"stdin_eof"}')
            assert (await text_of(socket))["problem"]["type"] == "/problems/conflict"


@pytest.mark.parametrize("frame", ['{"type":"signal","signal":"SIGINT"}', '{"signal":"INT"}'])
async def test_signals_in_every_form_reach_the_program(frame: str) -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        async with live.stream(path) as socket:
            await socket.send(frame)
            texts, _ = await frames_of(socket)
        assert texts[-1]["exit"]["reason"] == "signaled"
        assert texts[-1]["exit"]["signal"] == "SIGINT"
        assert texts[-1]["exit_code"] == -2
