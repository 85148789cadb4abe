"""Server-Sent Events: the same view as the WebSocket's, in another encoding."""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from app.api.context import RequestTimeouts
from app.core.models import Channel
from app.core.sandboxes import Capacity
from app.settings import Settings
from tests.null_backend import pattern
from tests.unit.api.service import LiveService, Service, text_of, vm
from tests.unit.api.streams import execution_of, until

ACCEPT = {"accept": "text/event-stream"}


@dataclass
class Event:
    kind: str
    id: str
    data: Any


def parsed(block: str) -> Event | None:
    """None for a comment."""
    if block.startswith(":"):
        return None
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    assert set(fields) == {"event", "id", "data"}, block
    return Event(fields["event"], fields["id"], json.loads(fields["data"]))


async def events_of(answer: httpx.Response) -> AsyncIterator[Event | None]:
    assert answer.status_code == 200, await answer.aread()
    assert answer.headers["content-type"] == "text/event-stream"
    waiting = ""
    async for text in answer.aiter_text():
        waiting += text
        *blocks, waiting = waiting.split("\n\n")
        for block in blocks:
            yield parsed(block)
    assert waiting == ""


@asynccontextmanager
async def opened(
    live: LiveService, path: str, query: str = "", **headers: str
) -> AsyncIterator[AsyncIterator[Event | None]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with live.client.stream("GET", f"{path}/stream{query}", headers=ACCEPT | named, timeout=60) as answer:
        yield events_of(answer)


async def all_of(live: LiveService, path: str, query: str = "", **headers: str) -> list[Event]:
    async with opened(live, path, query, **headers) as events:
        return [event async for event in events if event is not None]


def output(events: list[Event], channel: str) -> bytes:
    """The bytes of a channel; each event must begin where the one before ended."""
    pieces = [event.data for event in events if event.kind == "output" and event.data["channel"] == channel]
    found, at = b"", None
    for piece in pieces:
        assert set(piece) == {"channel", "offset", "base64"}
        assert at in (None, piece["offset"])
        data = b64decode(piece["base64"], validate=True)
        assert 0 < len(data) <= 64 * 1024
        at = piece["offset"] + len(data)
        found += data
    return found


async def refused(live: LiveService, path: str, query: str = "", **headers: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await live.client.get(f"{path}/stream{query}", headers=ACCEPT | named)
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == answer.status_code
    return problem


async def test_events_start_replay_and_end_with_the_exit_and_the_answer() -> None:
    service = Service()
    async with service.served() as live:
        path = await live.start("echo", "hello")
        events = await all_of(live, path)
        metrics = (await live.client.get("/metrics")).text
    assert [event.kind for event in events] == ["start", "output", "exit"]
    assert [event.id for event in events] == ["0-0", "6-0", "6-0"]
    start, _, exit_ = (event.data for event in events)
    assert start["type"] == "start"
    assert output(events, "stdout") == b"hello\n"
    assert exit_["exit_code"] == 0
    assert exit_["stdout"]["sha256"] == hashlib.sha256(b"hello\n").hexdigest()
    assert 'bulkhead_stream_bytes_total{runtime="process"} 6.0' in metrics


async def test_every_byte_of_both_channels_comes_in_order_live() -> None:
    size = 3_000_000
    async with Service().served() as live:
        path = await live.start("silent-then", "both", str(size))
        async with opened(live, path) as events:
            first = await anext(events)
            assert first is not None
            assert (first.kind, first.data["state"]) == ("start", "running")
            live.service.backend.release(path.rsplit("/", 1)[1])
            found = [event async for event in events if event is not None]
    assert output(found, "stdout") == output(found, "stderr") == pattern(size)
    assert found[-1].id == f"{size}-{size}"


async def test_a_client_goes_on_behind_the_last_event_that_it_saw() -> None:
    async with Service().served() as live:
        path = await live.start("both", "200000")
        await live.client.get(f"{path}?wait_seconds=60")
        everything = await all_of(live, path)
        middle = everything[3]
        assert middle.kind == "output"
        rest = await all_of(live, path, "?stdout_offset=1", last_event_id=middle.id)
    assert rest[0].id == middle.id
    for channel in ("stdout", "stderr"):
        seen = output(everything[:4], channel)
        assert seen + output(rest, channel) == pattern(200_000)


async def test_offsets_of_the_query_are_where_it_begins() -> None:
    async with Service().served() as live:
        events = await all_of(live, await live.start("print", "1000"), "?stdout_offset=990")
    assert events[0].id == "990-0"
    assert output(events, "stdout") == pattern(1000)[990:]


async def test_dropped_bytes_are_a_gap_and_the_id_stands_behind_it() -> None:
    async with Service().served() as live:
        sandbox = (await live.client.post("/sandboxes", json={"limits": {"output_bytes": 1000}})).json()["id"]
        path = await live.start("print", "200000", sandbox=sandbox)
        await live.client.get(f"{path}?wait_seconds=60")
        events = await all_of(live, path)
    gap = events[1]
    assert gap.data == {"type": "gap", "channel": "stdout", "from": 0, "to": gap.data["to"]}
    assert (gap.kind, gap.id) == ("gap", f"{gap.data['to']}-0")
    assert output(events, "stdout") == pattern(200_000)[gap.data["to"] :]


async def test_a_gap_is_a_gap_without_an_end_and_the_id_stays() -> None:
    async with Service([vm()], default="boxlite").served() as live:
        events = await all_of(live, await live.start("torn", "16", "8"))
    assert [(event.kind, event.id) for event in events if event.kind != "output"] == [
        *(("start", "0-0"), ("gap", "16-0"), ("exit", "24-0"))
    ]


# --- refusals


@pytest.mark.parametrize("accept", [None, "*/*", "text/html", "text/event-stream;q=0", "text/event-streams"])
async def test_a_get_that_does_not_ask_for_events_is_426(accept: str | None) -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        answer = await live.client.get(f"{path}/stream", headers={"accept": accept} if accept else {})
        assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")


@pytest.mark.parametrize("accept", ["Text/Event-Stream", "text/html, text/event-stream; q=0.5", "text/event-stream ,x"])
async def test_events_may_be_asked_for_among_others(accept: str) -> None:
    async with Service().served() as live:
        assert [e.kind for e in await all_of(live, await live.start("exit", "0"), accept=accept)] == ["start", "exit"]


@pytest.mark.parametrize("last", ["", "1", "1-", "-1-0", "a-b", "1-2-3", "1 - 2", "0-" + "9" * 17, "٣-٣"])
async def test_a_bad_last_event_id_is_refused_by_name(last: str) -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        headers = [(b"accept", b"text/event-stream"), (b"last-event-id", last.encode())]
        answer = await live.client.get(f"{path}/stream", headers=headers)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "header/Last-Event-ID"


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("?stdin=true", "query/stdin"),
        ("?stdin=take", "query/stdin"),
        ("?stdout_offset=-1", "query/stdout_offset"),
        ("?x=1", "query/x"),
    ],
)
async def test_a_bad_query_is_refused_before_the_first_event(query: str, pointer: str) -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        problem = await refused(live, path, query)
        assert (problem["status"], problem["errors"][0]["pointer"]) == (422, pointer)
        assert execution_of(live, path).viewers == 0


async def test_beyond_the_end_is_416_and_unknown_ids_404_and_a_destroyed_sandbox_409() -> None:
    async with Service().served() as live:
        path = await live.start("echo", "hi")
        await live.client.get(f"{path}?wait_seconds=60")
        assert (await refused(live, path, "?stdout_offset=4"))["status"] == 416
        assert (await refused(live, path, last_event_id="3-1"))["status"] == 416
        assert (await refused(live, path + "x"))["status"] == 404
        await live.client.delete("/" + "/".join(path.split("/")[1:3]))
        assert (await refused(live, path))["type"] == "/problems/wrong_state"


async def test_viewers_of_both_kinds_count_together() -> None:
    async with Service(capacity=Capacity(viewers=1)).served() as live:
        path = await live.start("sleep")
        async with live.stream(path):
            assert (await refused(live, path))["type"] == "/problems/capacity_exceeded"
        await until(live, path, viewers=0)
        async with opened(live, path) as events:
            assert await anext(events) is not None
            assert (await refused(live, path))["type"] == "/problems/capacity_exceeded"


async def test_a_page_may_read_events_only_from_an_allowed_origin() -> None:
    async with Service(settings=Settings(allowed_origins=("https://app.example",))).served() as live:
        path = await live.start("exit", "0")
        headers = {**ACCEPT, "origin": "https://app.example"}
        answer = await live.client.get(f"{path}/stream", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["vary"] == "origin"
        assert "access-control-allow-origin" not in (await live.client.get(f"{path}/stream", headers=ACCEPT)).headers
        problem = await refused(live, path, origin="https://evil.example")
        assert problem["type"] == "/problems/forbidden"


# --- time, and others


async def test_a_silent_program_sends_comments() -> None:
    async with Service(timeouts=RequestTimeouts(silence=0.01)).served() as live:
        path = await live.start("sleep")
        async with asyncio.timeout(60), opened(live, path) as events:
            assert await anext(events) is not None
            assert await anext(events) is None
            assert await anext(events) is None


async def test_a_client_that_disconnects_is_noticed_while_the_program_is_silent() -> None:
    service = Service()
    async with service.served() as live:
        path = await live.start("sleep")
        async with opened(live, path) as events:
            await anext(events)
            await until(live, path, viewers=1)
        await until(live, path, viewers=0)
        assert (await live.client.get(path)).json()["state"] == "running"
    assert not [line for line in service.logged if line["event"] == "fault"]


async def test_a_viewer_that_never_reads_holds_up_neither_the_program_nor_the_others() -> None:
    size = 30_000_000
    async with Service(timeouts=RequestTimeouts(close=300)).served() as live:  # the viewer is there until we looked
        path = await live.start("silent-then", "print", str(size))
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port, limit=1024)
        writer.write(f"GET {path}/stream HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n".encode())
        await until(live, path, viewers=1)
        async with opened(live, path) as events:
            live.service.backend.release(path.rsplit("/", 1)[1])
            found = [event async for event in events if event is not None]
        assert found[-1].data["stdout"]["bytes"] == size
        await until(live, path, viewers=1)
        writer.transport.abort()
        del reader
        await until(live, path, viewers=0)


async def test_a_fast_program_does_not_starve_the_rest_of_the_service() -> None:
    async with Service().served() as live:
        path = await live.start("spew")
        async with opened(live, path) as events:

            async def read() -> None:
                async for _ in events:
                    pass

            reader = asyncio.create_task(read())
            for _ in range(20):
                async with asyncio.timeout(60):
                    assert (await live.client.get("/healthz")).status_code == 200
            await live.client.delete(path)
            await reader


async def test_a_sandbox_that_is_destroyed_ends_its_events_with_the_exit() -> None:
    async with Service().served() as live:
        path = await live.start("trap", "SIGINT")
        async with opened(live, path) as events:
            assert await anext(events) is not None
            assert (await live.client.delete("/" + "/".join(path.split("/")[1:3]))).status_code == 204
            found = [event async for event in events if event is not None]
        assert output(found, "stdout") == b"ready\n"
        assert found[-1].data["exit"]["reason"] == "killed"


async def test_a_fault_inside_is_an_event_and_the_end_and_is_logged() -> None:
    service = Service()
    async with service.served() as live:
        path = await live.start("silent-then", "echo", "x")
        async with opened(live, path) as events:
            await anext(events)
            log = execution_of(live, path).logs[Channel.STDOUT]
            log.read = lambda *_: 1 / 0
            live.service.backend.release(path.rsplit("/", 1)[1])
            (last,) = [event async for event in events if event is not None]
    assert (last.kind, last.id) == ("problem", "0-0")
    assert last.data["problem"]["type"] == "/problems/internal_error"
    assert "division" not in json.dumps(last.data)
    faults = [line for line in service.logged if line["event"] == "fault"]
    assert [fault["request_id"] for fault in faults] == [last.data["problem"]["instance"]]


async def test_websocket_and_events_of_one_execution_tell_the_same() -> None:
    async with Service().served() as live:
        path = await live.start("err", "oops")
        await live.client.get(f"{path}?wait_seconds=60")
        events = await all_of(live, path)
        async with live.stream(path) as socket:
            assert await text_of(socket) == events[0].data
            assert await socket.recv() == b"\x02" + output(events, "stderr")
            assert await text_of(socket) == events[-1].data
