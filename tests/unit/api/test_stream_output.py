from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from starlette.types import Message
from websockets.exceptions import ConnectionClosed

from app.api.context import RequestTimeouts
from app.core.models import Channel
from tests.null_backend import pattern
from tests.unit.api.service import Service, frames_of, text_of, vm
from tests.unit.api.streams import WINDOW, execution_of, until


async def test_stream_starts_replays_and_ends_with_the_exit_frame() -> None:
    async with Service().served() as live:
        path = await live.start("echo", "hello")
        async with live.stream(path) as socket:
            texts, channels = await frames_of(socket)
        assert socket.close_code == 1000
        start, exit_ = texts
        assert start == {
            "type": "start",
            "stdout_offset": 0,
            "stderr_offset": 0,
            "stdin_bytes": 0,
            "state": "ended" if start["state"] == "ended" else "running",
        }
        assert channels[1] == b"hello\n"
        assert exit_["type"] == "exit"
        assert exit_["exit_code"] == 0
        assert exit_["exit"]["reason"] == "exited"
        digest = hashlib.sha256(b"hello\n").hexdigest()
        assert exit_["stdout"] == {"bytes": 6, "dropped_bytes": 0, "sha256": digest}
        assert exit_["stderr"] == {"bytes": 0, "dropped_bytes": 0, "sha256": hashlib.sha256().hexdigest()}


async def test_many_viewers_get_every_byte_of_both_channels_in_order() -> None:
    size = 3_000_000
    async with Service().served() as live:
        path = await live.start("silent-then", "both", str(size))
        sockets = [await live.stream(path) for _ in range(4)]
        live.service.backend.release(path.rsplit("/", 1)[1])
        for (texts, channels), socket in zip(
            await asyncio.gather(*(frames_of(s) for s in sockets)), sockets, strict=True
        ):
            assert channels[1] == pattern(size)
            assert channels[2] == pattern(size)
            assert [t["type"] for t in texts] == ["start", "exit"]
            await socket.close()


async def test_stream_resumes_from_an_offset_without_a_byte_twice() -> None:
    async with Service().served() as live:
        path = await live.start("print", "200000")
        async with live.stream(path, "?stdout_offset=123456&stderr_offset=0") as socket:
            texts, channels = await frames_of(socket)
        assert channels[1] == pattern(200_000)[123_456:]
        assert texts[0]["stdout_offset"] == 123_456


async def test_dropped_bytes_are_a_gap_frame_and_are_counted() -> None:
    async with Service().served() as live:
        sandbox = (await live.client.post("/sandboxes", json={"limits": {"output_bytes": 1000}})).json()["id"]
        path = await live.start("print", "200000", sandbox=sandbox)
        await live.client.get(f"{path}?wait_seconds=60")
        async with live.stream(path) as socket:
            texts, channels = await frames_of(socket)
        assert [t["type"] for t in texts] == ["start", "gap", "exit"]
        gap, exit_ = texts[1], texts[2]
        assert gap == {"type": "gap", "channel": "stdout", "from": 0, "to": gap["to"]}
        assert channels[1] == pattern(200_000)[gap["to"] :]
        assert exit_["stdout"]["dropped_bytes"] == gap["to"]
        assert exit_["stdout"]["sha256"] == hashlib.sha256(pattern(200_000)).hexdigest()


async def test_a_gap_is_a_gap_frame_without_an_end_and_dropped_bytes_are_null() -> None:
    async with Service([vm()], default="boxlite").served() as live:
        path = await live.start("torn", "16", "8")
        async with live.stream(path) as socket:
            texts, channels = await frames_of(socket)
        assert [text["type"] for text in texts] == ["start", "gap", "exit"]
        assert texts[1] == {"type": "gap", "channel": "stdout", "from": 16, "to": None}
        assert channels[1] == pattern(24)
        digest = hashlib.sha256(pattern(24)).hexdigest()
        assert texts[2]["stdout"] == {"bytes": 24, "dropped_bytes": None, "sha256": digest}
        assert texts[2]["stderr"]["dropped_bytes"] is None


@pytest.mark.parametrize(
    ("offset", "kinds"), [(8, ["start", "gap", "exit"]), (16, ["start", "gap", "exit"]), (17, ["start", "exit"])]
)
async def test_a_stream_resumes_before_at_and_after_a_gap(offset: int, kinds: list[str]) -> None:
    async with Service([vm()], default="boxlite").served() as live:
        path = await live.start("torn", "16", "8")
        await live.client.get(f"{path}?wait_seconds=60")
        async with live.stream(path, f"?stdout_offset={offset}") as socket:
            texts, channels = await frames_of(socket)
        assert [text["type"] for text in texts] == kinds
        assert channels[1] == pattern(24)[offset:]


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        (["exit", "7"], 7, "exited"),
        (["oom"], -9, "oom"),
        (["missing"], 127, "start_failed"),
        (["refused", "mount_proc"], 126, "start_failed"),
    ],
)
async def test_exit_code_is_always_an_integer(command: list[str], code: int, reason: str) -> None:
    async with Service().served() as live:
        path = await live.start(*command)
        async with live.stream(path) as socket:
            texts, _ = await frames_of(socket)
        assert texts[-1]["exit_code"] == code
        assert texts[-1]["exit"]["reason"] == reason


async def test_a_lost_sandbox_ends_its_streams_with_minus_one() -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        async with live.stream(path) as socket:
            await text_of(socket)
            await live.service.backend.lose(path.split("/")[2])
            texts, _ = await frames_of(socket)
        assert texts[-1]["exit_code"] == -1
        assert texts[-1]["exit"]["reason"] == "lost"


async def test_a_stream_open_while_its_sandbox_is_destroyed_gets_everything_to_the_exit_frame() -> None:
    async with Service().served() as live:
        path = await live.start("trap", "SIGINT")
        async with live.stream(path) as socket:
            await text_of(socket)
            assert (await live.client.delete("/" + "/".join(path.split("/")[1:3]))).status_code == 204
            texts, channels = await frames_of(socket)
        assert channels[1] == b"ready\n"
        assert texts[-1]["exit"]["reason"] == "killed"
        assert texts[-1]["exit_code"] == -9


async def test_a_viewer_that_never_reads_holds_up_neither_the_program_nor_the_others() -> None:
    size = 30_000_000
    async with Service(timeouts=RequestTimeouts(close=300)).served() as live:  # the viewer is there until we looked
        path = await live.start("silent-then", "print", str(size))
        stalled = await live.stream(path, max_queue=1)
        async with live.stream(path) as socket:
            live.service.backend.release(path.rsplit("/", 1)[1])
            texts, channels = await frames_of(socket)
        assert hashlib.sha256(channels[1]).hexdigest() == texts[-1]["stdout"]["sha256"]
        assert (await live.client.get(path)).json()["state"] == "ended"
        assert execution_of(live, path).viewers == 1
        stalled.transport.abort()
        await until(live, path, viewers=0)


async def test_a_fast_program_does_not_starve_the_rest_of_the_service() -> None:
    async with Service().served() as live:
        path = await live.start("spew")
        async with live.stream(path) as socket:

            async def read() -> None:
                async for _ in socket:
                    pass

            reader = asyncio.create_task(read())
            for _ in range(20):
                async with asyncio.timeout(60):
                    assert (await live.client.get("/healthz")).status_code == 200
            await live.client.delete(path)
            await reader


async def test_a_client_that_leaves_while_the_program_is_silent_is_noticed() -> None:
    async with Service().served() as live:
        path = await live.start("sleep", stdin="open")
        async with live.stream(path, "?stdin=true") as socket:
            await text_of(socket)
            assert execution_of(live, path).viewers == 1
        await until(live, path, viewers=0, _lease=None)
        assert (await live.client.get(path)).json()["state"] == "running"


async def test_a_client_that_is_cut_off_while_its_stdin_is_not_read_is_noticed() -> None:
    async with Service(timeouts=RequestTimeouts(probe=0.01)).served() as live:
        path = await live.start("sleep", stdin="open")
        socket = await live.stream(path, "?stdin=true")
        await socket.send(b"x" * WINDOW)
        await until(live, path, stdin_bytes=WINDOW)
        await socket.close()
        await until(live, path, viewers=0, _lease=None)


async def test_stdin_sent_before_a_disconnect_still_arrives() -> None:
    async with Service().served() as live:
        path = await live.start("silent-then", "cat", stdin="open")
        async with live.stream(path, "?stdin=true") as socket:
            for _ in range(20):
                await socket.send(b"0123456789")
            await socket.send('{"type":"stdin_eof"}')
        await until(live, path, viewers=0)
        live.service.backend.release(path.rsplit("/", 1)[1])
        assert (await live.client.get(f"{path}?wait_seconds=60")).json()["exit"]["code"] == 0
        assert (await live.client.get(f"{path}/output")).content == b"0123456789" * 20


async def test_a_fault_inside_is_a_problem_frame_and_close_1011_and_is_logged() -> None:
    service = Service()
    async with service.served() as live:
        path = await live.start("silent-then", "echo", "x")
        async with live.stream(path) as socket:
            await text_of(socket)
            log = execution_of(live, path).logs[Channel.STDOUT]
            log.read = lambda *_: 1 / 0
            live.service.backend.release(path.rsplit("/", 1)[1])
            frame = await text_of(socket)
            assert frame["problem"]["type"] == "/problems/internal_error"
            assert "division" not in json.dumps(frame)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 1011
    faults = [line for line in service.logged if line["event"] == "fault"]
    assert faults[0]["request_id"] == frame["problem"]["instance"]
    assert "ZeroDivisionError" in faults[0]["exception"]


async def test_stream_bytes_are_counted() -> None:
    service = Service()
    async with service.served() as live:
        path = await live.start("print", "100000")
        async with live.stream(path) as socket:
            await frames_of(socket)
        metrics = (await live.client.get("/metrics")).text
    assert 'bulkhead_stream_bytes_total{runtime="process"} 100000.0' in metrics


async def test_what_there_is_of_a_stream_leaves_together_with_its_acceptance() -> None:
    """Nothing else runs in between, so the server sends all of it in one packet, which wakes the client once."""
    loop = asyncio.get_running_loop()
    turn, sent = 0, []

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(next_turn)

    messages = [{"type": "websocket.connect"}]

    async def receive() -> Message:
        return messages.pop() if messages else await loop.create_future()

    async def send(message: Message) -> None:
        sent.append((message["type"], turn))

    async with Service().served() as live:
        path = await live.start("echo", "hello")
        await until(live, path, over=True)
        scope = {"type": "websocket", "scheme": "ws", "path": f"{path}/stream", "query_string": b"", "state": {}}
        scope |= {"headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "root_path": ""}
        loop.call_soon(next_turn)
        await live.service.app(scope, receive, send)
    assert [kind for kind, _ in sent] == ["websocket.accept", *["websocket.send"] * 3, "websocket.close"]
    assert len({when for _, when in sent[:4]}) == 1
