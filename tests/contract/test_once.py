"""Done once, whatever the runtime: idempotency keys and ids of the client's own, over every backend of `kinds.py`."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.core.backend import Backend
from app.core.registry import Registry
from app.core.sandboxes import Capacity, Sandboxes
from app.main import create_app
from app.settings import load_settings
from app.telemetry import Telemetry
from tests.contract.kinds import KINDS, Kind

ONES = [kind for kind in KINDS if kind.name != "machine"]  # a boot takes five seconds there, and promises no more
KEY = {"idempotency-key": "one"}
TOGETHER = 50


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
    transport = httpx.ASGITransport(app)
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
