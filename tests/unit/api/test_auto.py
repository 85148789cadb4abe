"""Two walls in one service: `auto`, `isolation_min`, and never another runtime than the one asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.api.http.readiness import Readiness
from app.core.capabilities import Capability
from app.core.errors import BackendUnavailable
from tests.unit.api.service import Service, create, kernel, vm

NO_LAUNCHER = BackendUnavailable("process", "no launcher")
NO_SERVER = BackendUnavailable("boxlite", "no server")


def two_walls(**options: Any) -> Service:
    return Service([kernel(), vm()], **options)


async def answer_of(service: Service, **body: Any) -> dict[str, Any]:
    async with service.client() as client:
        answer = await client.post("/sandboxes", json=body)
        found: dict[str, Any] = answer.json()
        if answer.status_code >= 400:
            assert [s for b in service.backends for s in b.created] == []
        else:
            assert [s for b in service.backends if b.info.name == found["runtime"] for s in b.created] == [found["id"]]
        return found


@pytest.mark.parametrize(
    ("asked", "name", "tier"),
    [("process", "process", "kernel"), ("microvm", "boxlite", "vm"), (None, "process", "kernel")],
)
async def test_the_runtime_that_was_asked_for_has_no_reason(asked: str | None, name: str, tier: str) -> None:
    body = await answer_of(two_walls(), runtime=asked)
    assert (body["runtime"], body["runtime_reason"], body["isolation"]["tier"]) == (name, None, tier)


async def test_auto_takes_the_cheapest_wall_and_says_so() -> None:
    body = await answer_of(two_walls(), runtime="auto")
    assert body["runtime"] == "process"
    assert body["runtime_reason"] == "auto: process is the cheapest runtime that is available"


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"isolation_min": "vm"}, "isolates by vm at least; process isolates by kernel only"),
        ({"image": "python"}, "has images; process lacks images"),
        ({"requires": ["pty"]}, "has pty; process lacks pty"),
    ],
    ids=repr,
)
async def test_auto_takes_the_stronger_wall_where_the_request_needs_it(wanted: dict[str, Any], why: str) -> None:
    service = Service([kernel(lacks=[Capability.PTY]), vm()])
    body = await answer_of(service, runtime="auto", **wanted)
    assert body["runtime"] == "boxlite"
    assert body["runtime_reason"].endswith(why)


@pytest.mark.parametrize(
    "wanted",
    [
        {"limits": {"processes": 5}},
        {"policy": {"filesystem": {"read_only": ["/usr"]}}},
        {"policy": {"syscalls": {"profile": "default"}}},
        {"policy": {"profile": "narrow"}},
    ],
    ids=repr,
)
async def test_auto_takes_no_wall_that_cannot_enforce_what_was_asked_for(wanted: dict[str, Any]) -> None:
    body = await answer_of(Service([kernel(), vm()]), runtime="auto", **wanted)
    assert body["runtime"] == "process"
    other = Service([vm(), kernel()])  # were the cheapest one the VM, it would still be passed over
    body = await answer_of(other, runtime="auto", **wanted)
    assert body["runtime"] == "process"
    assert "boxlite lacks " in body["runtime_reason"]


async def test_auto_goes_by_the_hosts_that_are_to_be_reached() -> None:
    service = Service([kernel(), vm(Capability.NETWORK_DIRECT)])
    body = await answer_of(service, runtime="auto", policy={"network": {"mode": "direct", "allow": ["a.example.org"]}})
    assert body["runtime"] == "boxlite"


async def test_auto_takes_what_works() -> None:
    service = two_walls()
    service.backends[0].ready_error = NO_LAUNCHER
    body = await answer_of(service, runtime="auto")
    assert body["runtime"] == "boxlite"
    assert body["runtime_reason"].endswith("; process is not available (no launcher)")


async def test_auto_with_all_that_meet_the_request_down_is_503_and_names_them() -> None:
    service = two_walls()
    service.backends[1].ready_error = NO_SERVER
    problem = await answer_of(service, runtime="auto", isolation_min="vm")
    assert (problem["type"], problem["status"]) == ("/problems/backend_unavailable", 503)
    assert problem["runtime"] == "boxlite"
    assert "boxlite is not available (no server)" in problem["detail"]


async def test_auto_that_nothing_can_meet_is_refused_by_name() -> None:
    problem = await answer_of(two_walls(), runtime="auto", requires=["kill_tree", "images"])
    assert (problem["type"], problem["runtime"]) == ("/problems/capability_missing", "auto")
    assert problem["missing"] == ["images"]
    assert "boxlite lacks kill_tree" in problem["detail"]
    problem = await answer_of(two_walls(disabled=("boxlite",)), runtime="auto", isolation_min="vm")
    assert (problem["type"], problem["runtime"]) == ("/problems/runtime_not_enabled", "auto")
    assert "boxlite is not enabled" in problem["detail"]


@pytest.mark.parametrize("runtime", ["process", "linux", None])
async def test_a_weaker_runtime_than_the_floor_is_a_contradiction(runtime: str | None) -> None:
    problem = await answer_of(two_walls(), runtime=runtime, isolation_min="vm")
    assert problem["type"] == "/problems/invalid_request"
    assert [error["pointer"] for error in problem["errors"]] == ["/isolation_min"]


@pytest.mark.parametrize(("runtime", "floor"), [("boxlite", "kernel"), ("vm", "vm"), ("process", "kernel")])
async def test_a_wall_as_strong_as_the_floor_is_taken(runtime: str, floor: str) -> None:
    assert (await answer_of(two_walls(), runtime=runtime, isolation_min=floor))["runtime_reason"] is None


async def test_a_runtime_that_was_asked_for_is_never_replaced_by_one_that_works() -> None:
    service = two_walls()
    service.backends[0].create_error = NO_LAUNCHER
    async with service.client() as client:
        answer = await client.post("/sandboxes", json={"runtime": "process"})
        assert (answer.status_code, answer.json()["runtime"]) == (503, "process")
        assert service.backends[1].created == []


def always_asked(service: Service) -> Service:
    """A service that asks its runtimes anew for every request, so that a test can change what they say."""
    context = service.app.state.context
    readiness = Readiness(service.registry, service.telemetry.runtime_ready, fresh_seconds=0)
    service.app.state.context = replace(context, readiness=readiness)
    return service


@pytest.mark.parametrize("down", ["neither", "its own", "both"])
async def test_a_repeated_auto_finds_its_sandbox_whatever_is_down_now(down: str) -> None:
    service = always_asked(two_walls())
    cheap, strong = service.backends
    cheap.ready_error = NO_LAUNCHER
    async with service.client() as client:
        body = {"id": "mine", "runtime": "auto"}
        first = await client.post("/sandboxes", json=body)
        assert (first.status_code, first.json()["runtime"]) == (201, "boxlite")
        cheap.ready_error = NO_LAUNCHER if down == "both" else None
        strong.ready_error = None if down == "neither" else NO_SERVER
        again = await client.post("/sandboxes", json=body)
        assert (again.status_code, again.json()["runtime"]) == (200, "boxlite")
        assert again.json()["runtime_reason"] == first.json()["runtime_reason"]
        new = await client.post("/sandboxes", json={"runtime": "auto"})
        assert new.status_code == (503 if down == "both" else 201), "the runtimes were asked anew"
        other = await client.post("/sandboxes", json={**body, "workdir": "/tmp"})
        assert other.json()["type"] == "/problems/conflict"


async def test_a_repeated_auto_that_asks_for_more_is_a_conflict_and_makes_nothing() -> None:
    service = two_walls()
    async with service.client() as client:
        await client.post("/sandboxes", json={"id": "mine", "runtime": "auto"})
        answer = await client.post("/sandboxes", json={"id": "mine", "runtime": "auto", "isolation_min": "vm"})
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
        assert service.backends[1].created == []


async def test_auto_can_be_the_operators_default() -> None:
    service = two_walls(default="auto")
    service.backends[0].ready_error = NO_LAUNCHER
    async with service.client() as client:
        assert (await client.post("/sandboxes", json={})).json()["runtime"] == "boxlite"
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["default"]) == (200, "auto")
    service = two_walls(default="auto")
    service.backends[0].ready_error, service.backends[1].ready_error = NO_LAUNCHER, NO_SERVER
    async with service.client() as client:
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["detail"] == "no runtime works: process: no launcher; boxlite: no server"


async def test_two_walls_stand_beside_each_other() -> None:
    service = two_walls()
    async with service.client() as client:
        weak, strong = await create(client), await create(client, runtime="vm")
        assert [b.created for b in service.backends] == [[weak], [strong]]
        for runtime, sandbox in (("kernel", weak), ("microvm", strong)):
            (item,) = (await client.get(f"/sandboxes?runtime={runtime}")).json()["items"]
            assert item["id"] == sandbox
        await client.delete(f"/sandboxes/{strong}")
        assert (service.backends[0].alive, service.backends[1].alive) == ([weak], [])
