from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from app.api.schemas import answers
from app.core.errors import (
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    BulkheadError,
    IsolationUnavailable,
    LaunchFailed,
    Upstream,
)
from app.core.sandboxes import Capacity
from tests.null_backend import Gate
from tests.unit.api.service import Service, call, create


async def test_create_answers_201_with_location_and_the_whole_sandbox() -> None:
    async with Service().client() as client:
        answer = await client.post("/sandboxes", json={})
        assert answer.status_code == 201
        body = answer.json()
        assert answer.headers["location"] == f"/sandboxes/{body['id']}"
        assert body["id"].startswith("sbx_")
        answers.Sandbox.model_validate_json(answer.content)
        assert body["runtime"] == "process"
        assert body["state"] == "running"
        assert body["limits"] == {
            "cpus": 1,
            "memory_mib": 512,
            "processes": 128,
            "disk_mib": 512,
            "output_bytes": 64 * 1024 * 1024,
            "wall_seconds": 3600,
        }
        assert body["policy"]["filesystem"]["read_write"] == ["/workspace", "/tmp", "/dev/shm"]
        assert body["isolation"]["tier"] == "kernel"
        assert body["executions"] == {"running": 0, "total": 0}
        assert body["created_at"].endswith("Z")


async def test_an_alias_is_answered_with_the_canonical_name() -> None:
    async with Service().client() as client:
        assert (await client.post("/sandboxes", json={"runtime": "linux"})).json()["runtime"] == "process"


async def test_the_same_id_with_the_same_body_is_the_same_sandbox() -> None:
    async with Service().client() as client:
        first = await client.post("/sandboxes", json={"id": "mine"})
        again = await client.post("/sandboxes", json={"id": "mine", "runtime": "kernel", "workdir": "/workspace"})
        assert (first.status_code, again.status_code) == (201, 200)
        assert "location" not in again.headers
        assert again.json()["created_at"] == first.json()["created_at"]
        other = await client.post("/sandboxes", json={"id": "mine", "workdir": "/tmp"})
        assert other.status_code == 409
        assert other.json()["type"] == "/problems/conflict"
        await client.delete("/sandboxes/mine")
        assert (await client.post("/sandboxes", json={"id": "mine"})).json()["type"] == "/problems/conflict"


async def test_wait_seconds_answers_with_creating_when_it_passes() -> None:
    service = Service()
    gate = service.backend.create_gate = Gate()
    async with service.client() as client:
        answer = await client.post("/sandboxes?wait_seconds=0", json={})
        assert answer.status_code == 201
        assert answer.json()["state"] == "creating"
        assert answer.json()["isolation"] is None
        path = answer.headers["location"]
        held = asyncio.create_task(client.get(f"{path}?wait_seconds=30"))
        await gate.reached.wait()
        gate.open()
        assert (await held).json()["state"] == "running"


def upstream(status: int | None, code: str | None) -> dict[str, Any]:
    """What the runtime's own server answered."""
    return {"runtime": "process", "upstream_status": status, "upstream_code": code}


@pytest.mark.parametrize(
    ("error", "status", "extras"),
    [
        (LaunchFailed("mount_proc", "EPERM", "step mount_proc failed: EPERM"), 500, {"step": "mount_proc"}),
        (IsolationUnavailable("landlock", "no Landlock"), 503, {"layer": "landlock"}),
        (BackendUnavailable("process", "no launcher", 3), 503, {"runtime": "process"}),
        (BackendTimeout("process", "no answer"), 504, {"runtime": "process"}),
        (BackendRefused("process", "no", Upstream(409, "taken")), 502, upstream(409, "taken")),
        (
            BackendUnavailable("process", "not now", upstream=Upstream(503, "engine_unavailable")),
            503,
            upstream(503, "engine_unavailable"),
        ),
        (BackendUnavailable("process", "no server"), 503, upstream(None, None)),
        (BackendTimeout("process", "slow", Upstream(504)), 504, upstream(504, None)),
    ],
)
async def test_a_boot_that_fails_is_a_problem_and_nothing_of_it_is_left(
    error: BulkheadError, status: int, extras: dict[str, Any]
) -> None:
    service = Service()
    service.backend.create_error = error
    async with service.client() as client:
        answer = await client.post("/sandboxes", json={"id": "mine"})
        assert answer.status_code == status
        assert answer.json().items() >= extras.items()
        assert ("retry-after" in answer.headers) == (status == 503)
        assert (await client.get("/sandboxes/mine")).status_code == 404
        assert service.backend.alive == []
        service.backend.create_error = None
        assert (await client.post("/sandboxes", json={"id": "mine"})).status_code == 201


async def test_sandboxes_over_the_operators_limit_are_429_with_retry_after() -> None:
    async with Service(capacity=Capacity(sandboxes=1)).client() as client:
        await create(client)
        answer = await client.post("/sandboxes", json={})
        assert answer.status_code == 429
        assert answer.json()["type"] == "/problems/capacity_exceeded"
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_client_that_disconnects_during_the_boot_leaves_no_sandbox() -> None:
    service = Service()
    gate = service.backend.create_gate = Gate()
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]
    sent = await call(service.app, "POST", "/sandboxes", messages)
    assert sent == []
    gate.open()
    assert service.backend.alive == []
    assert [s.state for s in service.sandboxes] == ["destroyed"]
    assert service.logged[-1]["status"] == 499
    await service.sandboxes.aclose()


async def test_a_client_that_disconnects_but_chose_an_id_finds_its_sandbox() -> None:
    service = Service()
    gate = service.backend.create_gate = Gate()
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": b'{"id":"mine"}'}, {"type": "http.disconnect"}]
    assert await call(service.app, "POST", "/sandboxes", messages) == []
    gate.open()
    async with service.client() as client:
        assert (await client.get("/sandboxes/mine?wait_seconds=60")).json()["state"] == "running"


async def test_a_disconnect_just_when_the_boot_ends_leaves_no_sandbox() -> None:
    service = Service()
    gate = service.backend.create_gate = Gate()
    first: dict[str, Any] = {"type": "http.request", "body": b"{}"}

    async def receive() -> MutableMapping[str, Any]:
        nonlocal first
        if first:
            message, first = first, {}
            return message
        await gate.reached.wait()
        gate.open()
        async with asyncio.timeout(60):
            await next(iter(service.sandboxes)).wait(60)
        return {"type": "http.disconnect"}

    async def send(_: MutableMapping[str, Any]) -> None:
        raise AssertionError("there is nobody to answer")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/sandboxes",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "scheme": "http",
        "root_path": "",
    }
    await service.app(scope, receive, send)
    assert service.backend.alive == []
    await service.sandboxes.aclose()


@pytest.mark.parametrize("value", ["-1", "301", "nan", "inf", "x", ""])
async def test_wait_seconds_out_of_range_is_refused(value: str) -> None:
    service = Service()
    async with service.client() as client:
        answer = await client.post(f"/sandboxes?wait_seconds={value}", json={})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "query/wait_seconds"
        assert service.backend.created == []


async def test_unknown_query_parameters_are_refused() -> None:
    async with Service().client() as client:
        assert (await client.get("/sandboxes?colour=red")).json()["errors"][0]["pointer"] == "query/colour"
