"""What one client holds of the service: its share and no more, and others go on."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.core.budget import Budget
from app.core.limits import MIB
from app.core.sandboxes import Capacity
from app.settings import Settings, load_settings
from tests.null_backend import Gate, NullBackend
from tests.unit.api.service import Service, create, start

KEYS = ("bh_" + "a" * 43, "bh_" + "b" * 43)
HASHES = tuple(hashlib.sha256(key.encode()).hexdigest() for key in KEYS)
EVENTS = {"accept": "text/event-stream"}


@asynccontextmanager
async def two_clients(
    settings: Settings | None = None, backend: NullBackend | None = None, **numbers: int
) -> AsyncIterator[tuple[Service, httpx.AsyncClient, httpx.AsyncClient]]:
    service = Service(
        [backend] if backend else None, capacity=Capacity(**numbers), key_hashes=HASHES, settings=settings
    )
    async with service.client() as first, service.client() as second:
        for client, key in zip((first, second), KEYS, strict=True):
            client.headers["authorization"] = f"Bearer {key}"
        yield service, first, second


async def reaches(budget: Budget, used: int) -> None:
    async with asyncio.timeout(60):
        while budget.used != used:  # noqa: ASYNC110 - the edge has no event for its own bookkeeping
            await asyncio.sleep(0)


def is_refused(answer: httpx.Response, budget: str, holder: str) -> bool:
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (429, "/problems/capacity_exceeded"), problem
    assert int(answer.headers["retry-after"]) >= 1
    assert budget in problem["detail"]
    return (problem["budget"], problem["holder"]) == (budget, holder)


Ask = Callable[[httpx.AsyncClient, str, str], Awaitable[httpx.Response]]

HOLDING: dict[str, Ask] = {
    "an end": lambda client, _, path: client.get(f"{path}?wait_seconds=60"),
    "output": lambda client, _, path: client.get(f"{path}/output?wait_seconds=60"),
    "stdin": lambda client, _, path: client.put(f"{path}/stdin", content=never()),
    "a run": lambda client, *_: client.post("/run", json={"command": ["sleep"]}),
    "a key": lambda client, *_: client.post(
        "/run", json={"command": ["sleep"]}, headers={"idempotency-key": "the same"}
    ),
}


async def never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


@pytest.mark.parametrize("ask", HOLDING.values(), ids=HOLDING.keys())
async def test_held_requests_of_one_client_leave_room_for_another(ask: Ask) -> None:
    async with two_clients(waits=8) as (service, first, second):
        waits = service.app.state.context.shares.waits
        sandbox = await create(first)
        path = await start(first, sandbox, "cat", stdin="open")
        waiting = [asyncio.ensure_future(ask(first, sandbox, path))]
        await reaches(waits, 2 if ask is HOLDING["a key"] else 1)  # with a key, the work and the one that waits for it
        quiet = HOLDING["an end"]
        waiting += [asyncio.ensure_future(quiet(first, sandbox, path)) for _ in range(4 - waits.used)]
        await reaches(waits, 4)
        assert is_refused(await quiet(first, sandbox, path), "requests that are held at one time", "client")
        assert (await first.get(path)).status_code == 200  # what needs not wait is answered
        waiting += [asyncio.ensure_future(quiet(second, sandbox, path))]
        await reaches(waits, 5)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await second.delete(f"/sandboxes/{sandbox}")
        for item in (await second.get("/sandboxes?state=running")).json()["items"]:
            await second.delete(f"/sandboxes/{item['id']}")
        await reaches(waits, 0)


async def test_creates_and_starts_are_held_too() -> None:
    async with two_clients(waits=2) as (service, first, second):
        sandbox = await create(first)
        path = await start(first, sandbox, "sleep")
        waiting = asyncio.create_task(first.get(f"{path}?wait_seconds=60"))
        await reaches(service.app.state.context.shares.waits, 1)
        before = len(service.backend.sandboxes)
        assert is_refused(await first.post("/sandboxes", json={}), "requests that are held at one time", "client")
        body = {"command": ["true"]}
        executions = f"/sandboxes/{sandbox}/executions"
        assert is_refused(await first.post(executions, json=body), "requests that are held at one time", "client")
        assert len(service.backend.sandboxes) == before
        assert (await second.post(executions, json=body)).status_code == 201
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_refusals_are_counted_by_budget_and_holder_with_a_key_for_idempotency_or_without() -> None:
    async with two_clients(waits=2, sandboxes=3) as (service, first, second):
        path = await start(first, await create(first), "sleep")
        waiting = asyncio.create_task(first.get(f"{path}?wait_seconds=60"))
        await reaches(service.app.state.context.shares.waits, 1)
        for headers in ({}, {"idempotency-key": "one"}):
            refused = await first.post("/sandboxes", json={}, headers=headers)
            assert is_refused(refused, "requests that are held at one time", "client")
        await create(second)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await reaches(service.app.state.context.shares.waits, 0)
        assert is_refused(await second.post("/sandboxes", json={}), "sandboxes", "client")
        lines = service.telemetry.render().decode().splitlines()
    assert sorted(line for line in lines if line.startswith("bulkhead_capacity_refusals_total")) == [
        'bulkhead_capacity_refusals_total{budget="requests that are held at one time",holder="client"} 2.0',
        'bulkhead_capacity_refusals_total{budget="sandboxes",holder="client"} 1.0',
    ]


async def test_streams_of_one_client_leave_room_for_another() -> None:
    async with Service(capacity=Capacity(streams=4), key_hashes=HASHES).served() as live:
        streams = live.service.app.state.context.shares.streams
        headers = [{"authorization": f"Bearer {key}"} for key in KEYS]
        live.client.headers.update(headers[0])
        path = await live.start("sleep")
        async with (
            live.stream(path, additional_headers=headers[0]) as socket,
            live.client.stream("GET", f"{path}/stream", headers=EVENTS) as events,
        ):
            await socket.recv()
            assert (events.status_code, streams.used) == (200, 2)
            refused = await live.client.get(f"{path}/stream", headers=EVENTS)
            assert is_refused(refused, "streams at one time", "client")
            async with live.stream(path, additional_headers=headers[1]) as other:
                await other.recv()
                refused = await live.client.get(f"{path}/stream", headers=EVENTS | headers[1])
                assert is_refused(refused, "streams at one time", "client")
        await reaches(streams, 0)


async def test_tickets_count_for_the_client_that_asked_and_so_do_their_streams() -> None:
    async with Service(capacity=Capacity(tickets=4, streams=2), key_hashes=HASHES).served() as live:
        shares = live.service.app.state.context.shares
        headers = [{"authorization": f"Bearer {key}"} for key in KEYS]
        live.client.headers.update(headers[0])
        path = await live.start("sleep")
        asked = [await ticket(live.client, path, headers[0]) for _ in range(3)]
        assert is_refused(asked[2], "unused stream tickets", "client")
        assert (await ticket(live.client, path, headers[1])).status_code == 201
        async with live.stream(path, f"?ticket={asked[0].json()['ticket']}") as socket:
            await socket.recv()
            assert shares.streams.held(HASHES[0]) == 1
            refused = await live.client.get(f"{path}/stream", headers=EVENTS | headers[0])
            assert is_refused(refused, "streams at one time", "client")
        await reaches(shares.streams, 0)


async def ticket(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> httpx.Response:
    return await client.post("/stream-tickets", json={"path": f"{path}/stream"}, headers=headers)


async def test_a_client_that_is_alone_may_hold_all() -> None:
    service = Service(capacity=Capacity(tickets=3))
    async with service.client() as client:
        answers = [await ticket(client, "/sandboxes/a/executions/b", {}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
        assert is_refused(answers[3], "unused stream tickets", "service")


async def test_bodies_and_sandboxes_of_one_client_leave_room_for_another() -> None:
    async with two_clients(settings=load_settings(transfers={"bodies_mib": 8}), sandboxes=2) as (
        service,
        first,
        second,
    ):
        half = {"command": ["sleep"], "stdin": "x" * 3_000_000}
        service.backend.execute_gate = gate = Gate()
        running = asyncio.create_task(first.post("/run", json=half))
        await gate.reached.wait()
        assert is_refused(await first.post("/run", json=half), "MiB of request bodies at one time", "client")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await reaches(service.app.state.context.shares.bodies, 0)
        service.backend.execute_gate = None
        assert (await first.post("/sandboxes", json={})).status_code == 201
        assert is_refused(await first.post("/sandboxes", json={}), "sandboxes", "client")
        assert is_refused(await first.post("/run", json={"command": ["true"]}), "sandboxes", "client")
        assert (await second.post("/sandboxes", json={})).status_code == 201


@pytest.mark.parametrize("pieces", [1, 60])
async def test_body_that_no_client_could_ever_hold_is_refused_without_a_word_of_trying_again(pieces: int) -> None:
    body = json.dumps({"command": ["true"], "stdin": "x" * 4_500_000}).encode()
    step = -(-len(body) // pieces)

    async def content() -> AsyncIterator[bytes]:
        for at in range(0, len(body), step):
            yield body[at : at + step]

    async with two_clients(settings=load_settings(transfers={"bodies_mib": 8})) as (service, first, _):
        refused = await first.post("/run", content=content(), headers={"content-type": "application/json"})
        problem = refused.json()
        assert (refused.status_code, problem["type"]) == (422, "/problems/bound_exceeded")
        assert (problem["bound"], problem["limit"]) == ("bytes of request bodies at one time", 4 << 20)
        assert problem["detail"] == (
            "the request needs more than 4194304 bytes of request bodies at one time, which is the most that it can "
            "have; send less at once"
        )
        assert "retry-after" not in refused.headers
        assert service.app.state.context.shares.bodies.used == 0


async def test_request_of_one_client_does_not_wait_for_hundreds_of_another() -> None:
    async with two_clients() as (_, first, second):
        order: list[str] = []

        async def ask(name: str, client: httpx.AsyncClient, path: str) -> None:
            assert (await client.get(path)).status_code == 200
            order.append(name)

        many = [ask("many", first, "/sandboxes") for _ in range(300)]
        await asyncio.gather(*many, ask("one", second, "/sandboxes"), ask("health", first, "/healthz"))
        assert max(order.index("one"), order.index("health")) < 30, order


class Measuring(NullBackend):
    """Knows what its disks can hold once it has been asked."""

    async def ready(self) -> None:
        self._info = replace(self.info, disk_bytes=1000 * MIB)


async def test_each_client_has_a_share_of_the_room_for_disks_from_the_first_request_on() -> None:
    async with two_clients(backend=Measuring()) as (service, first, second):

        async def create(client: httpx.AsyncClient, mib: int, path: str = "/sandboxes", **more: Any) -> httpx.Response:
            return await client.post(path, json={"storage": "disk", "limits": {"disk_mib": mib}, **more})

        too_high = await create(first, 501)
        assert (too_high.status_code, too_high.json()["pointer"], too_high.json()["ceiling"]) == (
            422,
            "/limits/disk_mib",
            500,
        )
        assert (await create(first, 500)).status_code == 201
        for answer in await create(first, 16), await create(first, 16, "/run", command=["exit", "0"]):
            assert is_refused(answer, "MiB of disks", "client")
        assert (await create(second, 250)).status_code == 201
        too_much = await create(second, 1001)
        assert (too_much.status_code, too_much.json()["type"]) == (507, "/problems/disk_full")
        assert len(list(service.sandboxes)) == 2
