from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from app.api.deps import Patience
from app.core.models import Channel
from app.core.sandboxes import Capacity
from tests.null_backend import pattern
from tests.unit.api.service import Door, Service, frames_of, text_of

WINDOW = 1024 * 1024


def execution_of(door: Door, path: str) -> Any:
    _, _, sandbox, _, execution = path.split("/")
    return door.service.sandboxes.execution(sandbox, execution)


async def until(door: Door, path: str, **attributes: object) -> None:
    """Waits, turn by turn of the loop, until the execution has these attributes."""
    execution = execution_of(door, path)
    async with asyncio.timeout(10):
        # The edge has no event for its own bookkeeping, so the loop is turned until it is done.
        while any(getattr(execution, n) != v for n, v in attributes.items()):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)


async def refusal(door: Door, path: str, query: str = "", **options: Any) -> dict[str, Any]:
    with pytest.raises(InvalidStatus) as caught:
        async with door.stream(path, query, **options):
            pass
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(response.body)
    assert problem["status"] == response.status_code
    assert problem["instance"] == response.headers["x-request-id"]
    return problem


# --- output


async def test_stream_starts_replays_and_ends_with_the_exit_frame() -> None:
    async with Service().served() as door:
        path = await door.start("echo", "hello")
        async with door.stream(path) as socket:
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
    async with Service().served() as door:
        path = await door.start("silent-then", "both", str(size))
        sockets = [await door.stream(path) for _ in range(4)]
        door.service.backend.release(path.rsplit("/", 1)[1])
        for (texts, channels), socket in zip(
            await asyncio.gather(*(frames_of(s) for s in sockets)), sockets, strict=True
        ):
            assert channels[1] == pattern(size)
            assert channels[2] == pattern(size)
            assert [t["type"] for t in texts] == ["start", "exit"]
            await socket.close()


async def test_stream_resumes_from_an_offset_without_a_byte_twice() -> None:
    async with Service().served() as door:
        path = await door.start("print", "200000")
        async with door.stream(path, "?stdout_offset=123456&stderr_offset=0") as socket:
            texts, channels = await frames_of(socket)
        assert channels[1] == pattern(200_000)[123_456:]
        assert texts[0]["stdout_offset"] == 123_456


async def test_dropped_bytes_are_a_gap_frame_and_are_counted() -> None:
    async with Service().served() as door:
        sandbox = (await door.client.post("/sandboxes", json={"limits": {"output_bytes": 1000}})).json()["id"]
        path = await door.start("print", "200000", sandbox=sandbox)
        await door.client.get(f"{path}?wait_seconds=10")
        async with door.stream(path) as socket:
            texts, channels = await frames_of(socket)
        assert [t["type"] for t in texts] == ["start", "gap", "exit"]
        gap, exit_ = texts[1], texts[2]
        assert gap == {"type": "gap", "channel": "stdout", "from": 0, "to": gap["to"]}
        assert channels[1] == pattern(200_000)[gap["to"] :]
        assert exit_["stdout"]["dropped_bytes"] == gap["to"]
        assert exit_["stdout"]["sha256"] == hashlib.sha256(pattern(200_000)).hexdigest()


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
    async with Service().served() as door:
        path = await door.start(*command)
        async with door.stream(path) as socket:
            texts, _ = await frames_of(socket)
        assert texts[-1]["exit_code"] == code
        assert texts[-1]["exit"]["reason"] == reason


async def test_a_lost_sandbox_ends_its_streams_with_minus_one() -> None:
    async with Service().served() as door:
        path = await door.start("sleep")
        async with door.stream(path) as socket:
            await text_of(socket)
            await door.service.backend.lose(path.split("/")[2])
            texts, _ = await frames_of(socket)
        assert texts[-1]["exit_code"] == -1
        assert texts[-1]["exit"]["reason"] == "lost"


async def test_a_stream_open_while_its_sandbox_is_destroyed_gets_everything_to_the_exit_frame() -> None:
    async with Service().served() as door:
        path = await door.start("trap", "SIGINT")
        async with door.stream(path) as socket:
            await text_of(socket)
            assert (await door.client.delete("/" + "/".join(path.split("/")[1:3]))).status_code == 204
            texts, channels = await frames_of(socket)
        assert channels[1] == b"ready\n"
        assert texts[-1]["exit"]["reason"] == "killed"
        assert texts[-1]["exit_code"] == -9


async def test_a_viewer_that_never_reads_holds_up_neither_the_program_nor_the_others() -> None:
    size = 30_000_000
    async with Service().served() as door:
        path = await door.start("silent-then", "print", str(size))
        stalled = await door.stream(path, max_queue=1)
        async with door.stream(path) as socket:
            door.service.backend.release(path.rsplit("/", 1)[1])
            texts, channels = await frames_of(socket)
        assert hashlib.sha256(channels[1]).hexdigest() == texts[-1]["stdout"]["sha256"]
        assert (await door.client.get(path)).json()["state"] == "ended"
        assert execution_of(door, path).viewers == 1
        stalled.transport.abort()
        await until(door, path, viewers=0)


async def test_a_fast_program_does_not_starve_the_rest_of_the_service() -> None:
    async with Service().served() as door:
        path = await door.start("spew")
        async with door.stream(path) as socket:

            async def read() -> None:
                async for _ in socket:
                    pass

            reader = asyncio.create_task(read())
            for _ in range(20):
                async with asyncio.timeout(5):
                    assert (await door.client.get("/healthz")).status_code == 200
            await door.client.delete(path)
            await reader


# --- leaving


async def test_a_client_that_leaves_while_the_program_is_silent_is_noticed() -> None:
    async with Service().served() as door:
        path = await door.start("sleep", stdin="open")
        async with door.stream(path, "?stdin=true") as socket:
            await text_of(socket)
            assert execution_of(door, path).viewers == 1
        await until(door, path, viewers=0, _grip=None)
        assert (await door.client.get(path)).json()["state"] == "running"


async def test_a_client_that_is_cut_off_while_its_stdin_is_not_read_is_noticed() -> None:
    async with Service(patience=Patience(probe=0.01)).served() as door:
        path = await door.start("sleep", stdin="open")
        socket = await door.stream(path, "?stdin=true")
        await socket.send(b"x" * WINDOW)
        await until(door, path, stdin_bytes=WINDOW)
        await socket.close()
        await until(door, path, viewers=0, _grip=None)


async def test_stdin_sent_before_a_hang_up_still_arrives() -> None:
    async with Service().served() as door:
        path = await door.start("silent-then", "cat", stdin="open")
        async with door.stream(path, "?stdin=true") as socket:
            for _ in range(20):
                await socket.send(b"0123456789")
            await socket.send('{"type":"stdin_eof"}')
        await until(door, path, viewers=0)
        door.service.backend.release(path.rsplit("/", 1)[1])
        assert (await door.client.get(f"{path}?wait_seconds=10")).json()["exit"]["code"] == 0
        assert (await door.client.get(f"{path}/output")).content == b"0123456789" * 20


# --- stdin


async def test_stdin_over_the_stream_reaches_the_program_and_its_end_too() -> None:
    async with Service().served() as door:
        path = await door.start("cat", stdin="open")
        async with door.stream(path, "?stdin=true") as socket:
            await socket.send(b"one ")
            await socket.send(b"two")
            await socket.send('{"type":"stdin_eof"}')
            texts, channels = await frames_of(socket)
        assert channels[1] == b"one two"
        assert texts[-1]["exit_code"] == 0


async def test_start_frame_says_how_much_stdin_was_accepted() -> None:
    async with Service().served() as door:
        path = await door.start("sleep", stdin="open")
        async with door.stream(path, "?stdin=true") as socket:
            await socket.send(b"12345")
            await until(door, path, stdin_bytes=5)
        await until(door, path, _grip=None)
        async with door.stream(path, "?stdin=true") as socket:
            assert (await text_of(socket))["stdin_bytes"] == 5


async def test_second_holder_of_stdin_is_refused_before_the_upgrade() -> None:
    async with Service().served() as door:
        path = await door.start("sleep", stdin="open")
        async with door.stream(path, "?stdin=true"):
            problem = await refusal(door, path, "?stdin=true")
            assert problem["type"] == "/problems/conflict"
            assert execution_of(door, path).viewers == 1


async def test_stdin_of_an_execution_without_one_is_refused_before_the_upgrade() -> None:
    async with Service().served() as door:
        path = await door.start("sleep")
        problem = await refusal(door, path, "?stdin=take")
        assert problem["type"] == "/problems/wrong_state"
        assert problem["state"] == "running"
        assert execution_of(door, path).viewers == 0


async def test_take_over_closes_the_old_holder_with_4001_and_the_new_one_feeds() -> None:
    async with Service().served() as door:
        path = await door.start("cat", stdin="open")
        old = await door.stream(path, "?stdin=true")
        assert (await text_of(old))["type"] == "start"
        async with door.stream(path, "?stdin=take") as new:
            with pytest.raises(ConnectionClosedError):
                await frames_of(old)
            assert old.close_code == 4001
            await new.send(b"mine")
            await new.send('{"type":"stdin_eof"}')
            _, channels = await frames_of(new)
        assert channels[1] == b"mine"


async def test_take_over_works_while_the_old_holder_is_stuck() -> None:
    async with Service().served() as door:
        path = await door.start("silent-then", "cat", stdin="open")
        old = await door.stream(path, "?stdin=true")
        await old.send(b"a" * WINDOW)
        await until(door, path, stdin_bytes=WINDOW)
        async with door.stream(path, "?stdin=take") as new:
            with pytest.raises(ConnectionClosedError):
                await frames_of(old)
            assert old.close_code == 4001
            door.service.backend.release(path.rsplit("/", 1)[1])
            await new.send(b"b")
            await new.send('{"type":"stdin_eof"}')
            _, channels = await frames_of(new)
        assert channels[1] == b"a" * WINDOW + b"b"


async def test_stdin_from_a_stream_that_does_not_hold_it_is_a_problem_and_a_close() -> None:
    async with Service().served() as door:
        path = await door.start("cat", stdin="open")
        async with door.stream(path) as socket:
            await socket.send(b"not mine")
            assert (await text_of(socket))["type"] == "start"
            frame = await text_of(socket)
            assert frame["type"] == "problem"
            assert frame["problem"]["type"] == "/problems/conflict"
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 1008
        assert execution_of(door, path).stdin_bytes == 0


async def test_a_program_that_does_not_read_stops_the_socket_from_being_read() -> None:
    async with Service().served() as door:
        path = await door.start("sleep", stdin="open")
        socket = await door.stream(path, "?stdin=true")
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while True:
                await socket.send(b"x" * 65536)
                sent += 65536

        pouring = asyncio.create_task(pour())
        await until(door, path, stdin_bytes=WINDOW)
        async with asyncio.timeout(10):
            before = -1
            while sent != before:  # until what the kernel buffers for the socket is full too
                before = sent
                assert (await door.client.get("/healthz")).status_code == 200
        assert execution_of(door, path).stdin_bytes == WINDOW
        pouring.cancel()
        socket.transport.abort()


# --- frames


@pytest.mark.parametrize(
    ("frame", "pointer"),
    [
        ("nonsense", ""),
        ("[1]", ""),
        ('{"type":"resize","rows":1,"cols":2}', "/type"),
        ('{"type":7}', "/type"),
        ("{}", "/type"),
        ('{"type":"stdin_eof","more":1}', "/more"),
        ('{"type":"signal"}', ""),
        ('{"type":"signal","sig":2,"signal":"SIGINT"}', ""),
        ('{"type":"signal","sig":99}', "/sig"),
        ('{"type":"signal","sig":"2"}', "/sig"),
        ('{"type":"signal","sig":true}', "/sig"),
        ('{"signal":"SIGNOTHING"}', "/signal"),
        ("[" * 60_000, ""),
    ],
)
async def test_a_frame_that_is_not_understood_gets_a_problem_frame_and_changes_nothing(
    frame: str, pointer: str
) -> None:
    async with Service().served() as door:
        path = await door.start("cat", stdin="open")
        async with door.stream(path, "?stdin=true") as socket:
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
    async with Service().served() as door:
        path = await door.start("sleep")
        async with door.stream(path) as socket:
            await text_of(socket)
            await socket.send("é" * 40_000)
            problem = (await text_of(socket))["problem"]
        assert problem["type"] == "/problems/payload_too_large"
        assert problem["limit"] == 65536


async def test_stdin_after_its_end_gets_a_problem_frame_and_the_stream_goes_on() -> None:
    async with Service().served() as door:
        path = await door.start("trap", stdin="open")
        async with door.stream(path, "?stdin=true") as socket:
            await socket.send('{"type":"stdin_eof"}')
            await socket.send(b"late")
            await socket.send('{"type":"stdin_eof"}')
            await socket.send('{"type":"signal","sig":15}')
            texts, _ = await frames_of(socket)
        kinds = [t["problem"]["type"] for t in texts if t["type"] == "problem"]
        assert kinds == ["/problems/wrong_state", "/problems/wrong_state"]
        assert texts[-1]["exit_code"] == -15


async def test_end_of_stdin_from_a_stream_that_does_not_hold_it_is_a_problem_frame() -> None:
    async with Service().served() as door:
        path = await door.start("sleep", stdin="open")
        async with door.stream(path) as socket:
            await text_of(socket)
            await socket.send('{"type":"stdin_eof"}')
            assert (await text_of(socket))["problem"]["type"] == "/problems/conflict"


@pytest.mark.parametrize(
    "frame", ['{"type":"signal","sig":2}', '{"type":"signal","signal":"SIGINT"}', '{"signal":"INT"}']
)
async def test_signals_in_every_form_reach_the_program(frame: str) -> None:
    async with Service().served() as door:
        path = await door.start("sleep")
        async with door.stream(path) as socket:
            await socket.send(frame)
            texts, _ = await frames_of(socket)
        assert texts[-1]["exit"]["reason"] == "signaled"
        assert texts[-1]["exit"]["signal"] == "SIGINT"
        assert texts[-1]["exit_code"] == -2


# --- refusals before the upgrade


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("?stdout_offset=-1", "query/stdout_offset"),
        ("?stderr_offset=x", "query/stderr_offset"),
        ("?stdin=maybe", "query/stdin"),
        ("?ticket=abc", "query/ticket"),
    ],
)
async def test_a_bad_query_is_refused_before_the_upgrade(query: str, pointer: str) -> None:
    async with Service().served() as door:
        problem = await refusal(door, await door.start("sleep"), query)
        assert problem["status"] == 422
        assert problem["errors"][0]["pointer"] == pointer


async def test_an_offset_beyond_the_end_is_416_before_the_upgrade() -> None:
    async with Service().served() as door:
        path = await door.start("echo", "hi")
        await door.client.get(f"{path}?wait_seconds=10")
        assert (await refusal(door, path, "?stdout_offset=4"))["type"] == "/problems/range_not_satisfiable"
        assert (await refusal(door, path, "?stderr_offset=1"))["type"] == "/problems/range_not_satisfiable"
        async with door.stream(path, "?stdout_offset=3") as socket:
            assert (await frames_of(socket))[1][1] == b""


async def test_unknown_ids_are_404_before_the_upgrade() -> None:
    async with Service().served() as door:
        path = await door.start("sleep")
        for wrong in ("/sandboxes/sbx_none/executions/exe_none", path + "x", "/sandboxes", "/nowhere"):
            assert (await refusal(door, wrong))["type"] == "/problems/not_found"


async def test_a_stream_of_a_destroyed_sandbox_is_409() -> None:
    async with Service().served() as door:
        path = await door.start("sleep")
        await door.client.delete("/" + "/".join(path.split("/")[1:3]))
        problem = await refusal(door, path)
        assert problem["type"] == "/problems/wrong_state"
        assert problem["state"] == "destroyed"


async def test_viewers_over_the_limit_are_429_until_one_leaves() -> None:
    async with Service(capacity=Capacity(viewers=1)).served() as door:
        path = await door.start("sleep")
        async with door.stream(path):
            assert (await refusal(door, path))["type"] == "/problems/capacity_exceeded"
        await until(door, path, viewers=0)
        async with door.stream(path) as socket:
            assert (await text_of(socket))["type"] == "start"


async def test_a_plain_get_is_426() -> None:
    async with Service().served() as door:
        answer = await door.client.get(f"{await door.start('sleep')}/stream")
        assert answer.status_code == 426
        assert answer.headers["upgrade"] == "websocket"
        assert answer.json()["type"] == "/problems/upgrade_required"


async def test_a_page_of_another_origin_cannot_open_a_stream() -> None:
    async with Service().served() as door:
        path = await door.start("sleep")
        problem = await refusal(door, path, origin="https://evil.example")
        assert problem["type"] == "/problems/forbidden"
        async with door.stream(path, origin=f"http://127.0.0.1:{door.port}") as socket:
            assert (await text_of(socket))["type"] == "start"


async def test_the_upgrade_needs_a_key_when_keys_are_configured() -> None:
    key = "k" * 43
    async with Service(key_hashes=(hashlib.sha256(key.encode()).hexdigest(),)).served() as door:
        door.client.headers["authorization"] = f"Bearer {key}"
        path = await door.start("sleep")
        assert (await refusal(door, path))["type"] == "/problems/unauthenticated"
        wrong = {"authorization": f"Bearer {'x' * 43}"}
        assert (await refusal(door, path, additional_headers=wrong))["type"] == "/problems/unauthenticated"
        async with door.stream(path, additional_headers={"authorization": f"Bearer {key}"}) as socket:
            assert (await text_of(socket))["type"] == "start"


# --- faults


async def test_a_fault_inside_is_a_problem_frame_and_close_1011_and_is_logged() -> None:
    service = Service()
    async with service.served() as door:
        path = await door.start("silent-then", "echo", "x")
        async with door.stream(path) as socket:
            await text_of(socket)
            log = execution_of(door, path).logs[Channel.STDOUT]
            log.read = lambda *_: 1 / 0
            door.service.backend.release(path.rsplit("/", 1)[1])
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
    async with service.served() as door:
        path = await door.start("print", "100000")
        async with door.stream(path) as socket:
            await frames_of(socket)
        metrics = (await door.client.get("/metrics")).text
    assert 'bulkhead_stream_bytes_total{runtime="process"} 100000.0' in metrics
