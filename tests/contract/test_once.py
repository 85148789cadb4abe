"""Done once, whatever the runtime: idempotency keys and ids of the client's own, over every backend of `kinds.py`."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import pytest

from app.core.backend import Backend, SandboxHandle
from app.core.models import SandboxSpec
from app.core.registry import Registry
from app.core.sandboxes import Capacity, Sandboxes
from app.main import create_app
from app.settings import load_settings
from app.telemetry import Telemetry
from tests.contract.kinds import KINDS, Kind
from tests.null_backend import Gate, NullBackend
from tests.unit.api.service import LiveService, OwnTurns, Service

ONES = [kind for kind in KINDS if kind.name != "machine"]  # a boot takes five seconds there, and promises no more
KEY = {"idempotency-key": "one"}
JSON = {**KEY, "content-type": "application/json"}
TOGETHER = 50
HUNG_UP = 499  # what the log says where a client did not wait for its answer


@pytest.fixture(params=ONES, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    chosen.check()
    return chosen


@asynccontextmanager
async def service(kind: Kind) -> AsyncIterator[tuple[httpx.AsyncClient, Sandboxes]]:
    backend: Backend = await kind.open()
    telemetry = Telemetry(stream=io.StringIO())
    registry = Registry([backend], default=backend.info.name)
    sandboxes = Sandboxes(registry, Capacity(), telemetry)
    app = create_app(load_settings(), sandboxes, registry, telemetry=telemetry)
    transport = OwnTurns(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        yield client, sandboxes
    assert kind.left(backend) == []


def limits(kind: Kind) -> dict[str, Any]:
    return {"limits": {"memory_mib": kind.spec.limits.memory_mib}, "image": kind.spec.image}


async def together(client: httpx.AsyncClient, path: str, body: Any, **headers: str) -> list[httpx.Response]:
    return list(await asyncio.gather(*(client.post(path, json=body, headers=headers) for _ in range(TOGETHER))))


async def test_fifty_creates_with_one_key_make_one_sandbox(kind: Kind) -> None:
    async with service(kind) as (client, sandboxes):
        answers = await together(client, "/sandboxes", limits(kind), **KEY)
        assert {answer.status_code for answer in answers} == {201}, answers[0].text
        assert {answer.content for answer in answers} == {answers[0].content}
        assert [sandbox.id for sandbox in sandboxes] == [answers[0].json()["id"]]


async def test_fifty_runs_with_one_key_run_once(kind: Kind) -> None:
    async with service(kind) as (client, sandboxes):
        body = {**limits(kind), "command": list(kind.programs.echo("hello")), "env": kind.env}
        answers = await together(client, "/run", body, **KEY)
        assert {answer.content for answer in answers} == {answers[0].content}
        assert answers[0].json()["stdout"] == "hello\n"
        assert list(sandboxes) == []
        again = await client.post("/run", json=body, headers=KEY)
        assert again.json() == answers[0].json()
        assert (await client.post("/run", json={**body, "env": {"X": "1"}}, headers=KEY)).status_code == 422


async def test_fifty_with_an_id_of_their_own_make_one_sandbox_and_one_execution(kind: Kind) -> None:
    async with service(kind) as (client, sandboxes):
        answers = await together(client, "/sandboxes", {**limits(kind), "id": "mine"})
        assert sorted(answer.status_code for answer in answers) == [200] * (TOGETHER - 1) + [201], answers[0].text
        assert [sandbox.id for sandbox in sandboxes] == ["mine"]
        body = {"id": "one", "command": list(kind.programs.sleep()), "env": kind.env}
        answers = await together(client, "/sandboxes/mine/executions", body)
        assert sorted(answer.status_code for answer in answers) == [200] * (TOGETHER - 1) + [201]
        shown = (await client.get("/sandboxes/mine/executions")).json()["items"]
        assert [item["id"] for item in shown] == ["one"]


async def test_fifty_starts_with_one_key_are_one_execution(kind: Kind) -> None:
    async with service(kind) as (client, _):
        sandbox = (await client.post("/sandboxes", json=limits(kind))).json()["id"]
        body = {"command": list(kind.programs.sleep()), "env": kind.env}
        answers = await together(client, f"/sandboxes/{sandbox}/executions", body, **KEY)
        assert len({answer.headers["location"] for answer in answers}) == 1
        assert len((await client.get(f"/sandboxes/{sandbox}/executions")).json()["items"]) == 1


# --- an answer that is lost, on a connection of its own


class Gated:
    """Holds every create of a backend until `gate` opens. `made` are the sandboxes that it was asked for."""

    def __init__(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.made = Gate(), list[str]()
        self._create = backend.create
        monkeypatch.setattr(backend, "create", self._gated)

    async def _gated(self, sandbox_id: str, spec: SandboxSpec) -> SandboxHandle:
        self.made.append(sandbox_id)
        await self.gate.pass_through()
        return await self._create(sandbox_id, spec)


@asynccontextmanager
async def served(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[LiveService, Gated]]:
    backend = await kind.open()
    gated = Gated(backend, monkeypatch)
    service = Service([cast(NullBackend, backend)], default=backend.info.name)  # it asks for a Backend, whichever it is
    async with service.served() as live:
        live.client.timeout = httpx.Timeout(60)
        yield live, gated
    assert kind.left(backend) == []


async def lose_answer(live: LiveService, gated: Gated, path: str, body: Any, *, told: int) -> None:
    """Sends the request and hangs up without reading a byte: before there is an answer, or when `told` was sent."""

    async def until_logged(status: int) -> None:
        async with asyncio.timeout(60):
            while True:
                if (path, status) in {(line.get("path"), line.get("status")) for line in live.service.logged}:
                    return
                await asyncio.sleep(0.005)

    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nIdempotency-Key: one\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await gated.gate.reached.wait()
    if told == HUNG_UP:
        writer.transport.abort()
        await until_logged(HUNG_UP)
    gated.gate.open()
    if told != HUNG_UP:
        await until_logged(told)
        writer.transport.abort()


@pytest.mark.parametrize("told", [HUNG_UP, 201])
async def test_a_create_whose_answer_is_lost_is_answered_to_the_retry(
    kind: Kind, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(kind, monkeypatch) as (live, gated):
        await lose_answer(live, gated, "/sandboxes", limits(kind), told=told)
        answer = await live.client.post("/sandboxes", content=json.dumps(limits(kind)), headers=JSON)
        assert (answer.status_code, answer.json()["state"]) == (201, "running")
        assert [answer.json()["id"]] == gated.made
        assert [sandbox.id for sandbox in live.service.sandboxes] == gated.made


@pytest.mark.parametrize("told", [HUNG_UP, 200])
async def test_a_run_whose_answer_is_lost_is_answered_to_the_retry(
    kind: Kind, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(kind, monkeypatch) as (live, gated):
        body = {**limits(kind), "command": list(kind.programs.echo("hello")), "env": kind.env}
        await lose_answer(live, gated, "/run", body, told=told)
        answer = await live.client.post("/run", content=json.dumps(body), headers=JSON)
        assert (answer.status_code, answer.json()["stdout"]) == (200, "hello\n")
        assert [answer.json()["sandbox_id"]] == gated.made
        assert list(live.service.sandboxes) == []
