"""Stream tickets: one path, one right, one use, thirty seconds."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.api.http.tickets import FIELDS, LIFE_SECONDS, Ticket, Tickets
from app.core.budget import Budget
from app.core.errors import CapacityExceeded, Unauthenticated
from app.settings import Settings
from tests.callbacks import own_work
from tests.processor_time import cost
from tests.unit.api.service import LiveService, Service, frames_of, text_of
from tests.unit.api.streams import execution_of, refusal

KEY = "bh_" + "k" * 43
BEARER = {"authorization": f"Bearer {KEY}"}
PATH = "/sandboxes/a/executions/b/stream"
EVENTS = {"accept": "text/event-stream"}


def locked(**options: Any) -> Service:
    return Service(key_hashes=(hashlib.sha256(KEY.encode()).hexdigest(),), **options)


async def started(live: LiveService, *command: str, **body: Any) -> str:
    live.client.headers.update(BEARER)
    return await live.start(*command, **body)


async def ticket_for(live: LiveService, path: str, **body: Any) -> str:
    answer = await live.client.post("/stream-tickets", json={"path": f"{path}/stream", **body})
    assert answer.status_code == 201, answer.text
    assert set(answer.json()) == {"ticket", "expires_at"}
    found: str = answer.json()["ticket"]
    return found


async def is_bad(live: LiveService, path: str, query: str, **options: Any) -> None:
    problem = await refusal(live, path, query, **options)
    assert (problem["status"], problem["type"]) == (401, "/problems/unauthenticated")
    assert "ticket" in problem["detail"]


# --- over the wire


async def test_a_ticket_opens_its_stream_once_without_a_key() -> None:
    async with locked().served() as live:
        path = await started(live, "echo", "hi")
        ticket = await ticket_for(live, path)
        async with live.stream(path, f"?ticket={ticket}") as socket:
            assert (await frames_of(socket))[1][1] == b"hi\n"
        await is_bad(live, path, f"?ticket={ticket}")


async def test_a_ticket_says_when_it_expires() -> None:
    async with Service().client() as client:
        before = datetime.now(UTC)
        answer = await client.post("/stream-tickets", json={"path": PATH})
        expires = datetime.fromisoformat(answer.json()["expires_at"])
        assert before <= expires - timedelta(seconds=LIFE_SECONDS) <= datetime.now(UTC)


async def test_a_ticket_opens_events_too() -> None:
    async with locked().served() as live:
        path = await started(live, "echo", "hi")
        ticket = await ticket_for(live, path)
        async with httpx.AsyncClient(base_url=live.client.base_url, headers=EVENTS, timeout=90) as stranger:
            url = f"{path}/stream?stdout_offset=1&ticket={ticket}"
            assert "event: exit" in (await stranger.get(url)).text
            assert (await stranger.get(url)).status_code == 401


@pytest.mark.parametrize("stdin", ["true", "take"])
async def test_only_a_ticket_for_stdin_opens_a_stream_that_holds_it(stdin: str) -> None:
    async with locked().served() as live:
        path = await started(live, "cat", stdin="open")
        ticket = await ticket_for(live, path)
        await is_bad(live, path, f"?stdin={stdin}&ticket={ticket}")
        await is_bad(live, path, f"?ticket={ticket}")  # spent by the attempt
        ticket = await ticket_for(live, path, stdin=True)
        async with live.stream(path, f"?stdin={stdin}&ticket={ticket}") as socket:
            await text_of(socket)
            await socket.send(b"mine")
            assert await socket.recv() == b"\x01mine"


async def test_a_ticket_for_stdin_opens_a_stream_without_it() -> None:
    async with locked().served() as live:
        path = await started(live, "echo", "hi")
        async with live.stream(path, f"?ticket={await ticket_for(live, path, stdin=True)}") as socket:
            assert (await text_of(socket))["type"] == "start"


async def test_a_refused_use_spends_it() -> None:
    async with locked(settings=Settings(allowed_origins=("https://app.example",))).served() as live:
        path = await started(live, "echo", "hi")
        for query, status, origin in (
            ("&stdout_offset=99", 416, None),
            ("&stdin=maybe", 401, None),
            ("&x=1", 422, None),
            ("", 403, "https://evil.example"),
        ):
            await live.client.get(f"{path}?wait_seconds=60")
            ticket = await ticket_for(live, path)
            assert (await refusal(live, path, f"?ticket={ticket}{query}", origin=origin))["status"] == status
            await is_bad(live, path, f"?ticket={ticket}", origin="https://app.example")


async def test_at_another_path_it_opens_nothing_and_is_spent() -> None:
    async with locked().served() as live:
        path, other = await started(live, "sleep"), await started(live, "sleep")
        for wrong in (f"{other}/stream", f"{path}/output", "/sandboxes", "/healthz"):
            ticket = await ticket_for(live, path)
            async with httpx.AsyncClient(base_url=live.client.base_url, headers=EVENTS, timeout=90) as stranger:
                assert (await stranger.get(f"{wrong}?ticket={ticket}")).status_code == 401
            await is_bad(live, path, f"?ticket={ticket}")


async def test_a_bad_ticket_is_401_also_with_a_key_and_without_configured_keys() -> None:
    async with locked().served() as live:
        path = await started(live, "sleep")
        await is_bad(live, path, "?ticket=", additional_headers=BEARER)
        first, second = await ticket_for(live, path), await ticket_for(live, path)
        await is_bad(live, path, f"?ticket={first}&ticket={second}")
        await is_bad(live, path, f"?ticket={second}")
    async with Service().served() as live:
        path = await live.start("sleep")
        await is_bad(live, path, "?ticket=guessed")
        await is_bad(live, path, "?%74icket=guessed")
        async with live.stream(path, f"?ticket={await ticket_for(live, path)}") as socket:
            assert (await text_of(socket))["type"] == "start"


async def test_a_ticket_stands_in_for_no_origin() -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        ticket = await ticket_for(live, path)
        problem = await refusal(live, path, f"?ticket={ticket}", origin="https://evil.example")
        assert problem["type"] == "/problems/forbidden"


async def test_asking_for_one_needs_a_key() -> None:
    async with locked().client() as client:
        assert (await client.post("/stream-tickets", json={"path": PATH})).status_code == 401
        assert (await client.post("/stream-tickets", json={"path": PATH}, headers=BEARER)).status_code == 201


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/sandboxes",
        "/sandboxes/a/executions/b",
        "/sandboxes/a/executions/b/output",
        "/sandboxes/a/executions/b/stream/",
        "/sandboxes/a/executions/b/stream\n",
        "/sandboxes/a/executions/b/stream?stdin=true",
        "/sandboxes/a/../executions/b/stream",
        "/sandboxes/%61/executions/b/stream",
        "http://localhost/sandboxes/a/executions/b/stream",
        7,
    ],
)
async def test_only_the_path_of_a_stream_gets_one(path: object) -> None:
    async with Service().client() as client:
        answer = await client.post("/stream-tickets", json={"path": path})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/path"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({}, "/path"), ({"path": PATH, "stdin": "take"}, "/stdin"), ({"path": PATH, "ttl": 1}, "/ttl")],
)
async def test_a_wrong_body_is_refused_by_name(body: dict[str, object], pointer: str) -> None:
    async with Service().client() as client:
        answer = await client.post("/stream-tickets", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_more_than_the_limit_are_429() -> None:
    service = Service()
    tickets = service.app.state.context.tickets
    with own_work():
        while len(tickets) < 4096:
            tickets.issue(PATH, False, "")
    async with service.client() as client:
        answer = await client.post("/stream-tickets", json={"path": PATH})
        assert (answer.status_code, answer.json()["type"]) == (429, "/problems/capacity_exceeded")
        assert int(answer.headers["retry-after"]) >= 1


async def test_tickets_are_not_in_the_log() -> None:
    service = Service()
    async with service.served() as live:
        path = await live.start("exit", "0")
        ticket = await ticket_for(live, path)
        async with live.stream(path, f"?ticket={ticket}") as socket:
            await frames_of(socket)
        await refusal(live, path, f"?ticket={ticket}")
        assert execution_of(live, path).viewers == 0
    log = service.log.getvalue()
    assert "/stream-tickets" in log
    assert ticket not in log
    assert "?" not in log


# --- the store


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def store(limit: int = 4096, clock: Clock | None = None) -> Tickets:
    budget = Budget("stream tickets", limit, "client", shared=False)
    return Tickets(budget) if clock is None else Tickets(budget, clock)


def is_good(tickets: Tickets, ticket: str) -> bool:
    scope = {"type": "websocket", "path": PATH, "query_string": f"ticket={ticket}".encode()}
    try:
        return isinstance(tickets.check(tickets.spend(scope), scope), Ticket)
    except Unauthenticated:
        return False


def test_a_ticket_is_good_until_its_time_is_over() -> None:
    clock = Clock()
    tickets = store(clock=clock)
    first, second = tickets.issue(PATH, False, "a"), tickets.issue(PATH, False, "a")
    clock.now += LIFE_SECONDS - 0.001
    assert is_good(tickets, first)
    clock.now += 0.001
    assert not is_good(tickets, second)


def test_room_comes_back_by_use_and_by_time() -> None:
    clock = Clock()
    tickets = store(2, clock)
    used = tickets.issue(PATH, False, "a")
    clock.now += 1
    tickets.issue(PATH, False, "a")
    with pytest.raises(CapacityExceeded, match="limit of 2 stream tickets"):
        tickets.issue(PATH, False, "a")
    assert is_good(tickets, used)
    tickets.issue(PATH, False, "a")
    clock.now += LIFE_SECONDS
    assert len(tickets) == 0
    tickets.issue(PATH, False, "a")


def test_no_ticket_is_like_another() -> None:
    tickets = store()
    found = {tickets.issue(PATH, False, "a") for _ in range(1000)}
    assert len(found) == 1000
    assert {len(ticket) for ticket in found} == {32}
    assert all(is_good(tickets, ticket) for ticket in found)
    assert len(tickets) == 0


def test_a_request_without_one_spends_none() -> None:
    scope = {"type": "http", "path": PATH, "query_string": b""}
    assert store().spend(scope) == ()
    assert store().spend(scope | {"query_string": b"x=1"}) == ()


@pytest.mark.parametrize("query", [b"a&" * 8000, b"ticket=&" * 2000, b"ticket=&" + b"a&" * 8000])
def test_to_look_for_one_in_a_long_query_costs_little(query: bytes) -> None:
    tickets, scope = store(), {"type": "http", "path": PATH, "query_string": query}

    def look() -> None:
        for _ in range(10):
            spent = tickets.spend(scope)
            with pytest.raises(Unauthenticated):
                tickets.check(spent, scope)
            assert len(spent) <= FIELDS

    assert cost(look) < 0.02, "all fields of the first and of the last take 70 ms"


# --- what a ticket without stdin is for


@pytest.mark.parametrize(
    "frame",
    ['{"type": "signal", "signal": "SIGKILL"}', '{"type": "resize", "rows": 9, "cols": 9}', '{"type": "stdin_eof"}'],
)
async def test_who_may_not_type_may_not_act_in_another_way(frame: str) -> None:
    async with locked().served() as live:
        path = await started(live, "cat", stdin="open")
        async with live.stream(path, f"?ticket={await ticket_for(live, path)}") as socket:
            await text_of(socket)
            await socket.send(frame)
            problem = (await text_of(socket))["problem"]
            assert (problem["type"], problem["status"]) == ("/problems/forbidden", 403)
            assert execution_of(live, path).exit is None
            await live.client.delete(path)  # the stream goes on, and tells the end
            assert (await frames_of(socket))[0][-1]["exit"]["reason"] == "killed"


@pytest.mark.parametrize("how", ["key", "ticket"])
async def test_with_a_key_or_a_ticket_for_stdin_signals_are_taken(how: str) -> None:
    async with locked().served() as live:
        path = await started(live, "cat", stdin="open")
        query = f"?ticket={await ticket_for(live, path, stdin=True)}" if how == "ticket" else ""
        async with live.stream(path, query, additional_headers=BEARER if how == "key" else {}) as socket:
            await text_of(socket)
            await socket.send('{"signal": "TERM"}')
            assert (await frames_of(socket))[0][-1]["exit"]["signal"] == "SIGTERM"
