from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from app.api import schemas
from app.core.backend import Capability, CommandLimits
from app.core.errors import (
    BackendTimeout,
    BackendUnavailable,
    BulkheadError,
    IsolationUnavailable,
    LaunchFailed,
)
from app.core.sandboxes import Capacity
from tests.null_backend import CAPABILITIES, Gate, NullBackend
from tests.unit.api.service import Service, call, create


async def refused(body: Any, service: Service | None = None, **request: Any) -> dict[str, Any]:
    """The problem that a create ends in; nothing was created."""
    service = service or Service()
    async with service.client() as client:
        answer = await client.post("/sandboxes", json=body, **request)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        problem: dict[str, Any] = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["instance"] == answer.headers["x-request-id"]
        assert [s for b in service.backends for s in b.created] == []
        assert (await client.get("/sandboxes")).json()["items"] == []
    return problem


# --- create


async def test_create_answers_201_with_location_and_the_whole_sandbox() -> None:
    async with Service().client() as client:
        answer = await client.post("/sandboxes", json={})
        assert answer.status_code == 201
        body = answer.json()
        assert answer.headers["location"] == f"/sandboxes/{body['id']}"
        assert body["id"].startswith("sbx_")
        schemas.Sandbox.model_validate_json(answer.content)
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


@pytest.mark.parametrize(
    ("error", "status", "extras"),
    [
        (LaunchFailed("mount_proc", "EPERM", "step mount_proc failed: EPERM"), 500, {"step": "mount_proc"}),
        (IsolationUnavailable("landlock", "no Landlock"), 503, {"layer": "landlock"}),
        (BackendUnavailable("process", "no launcher", 3), 503, {"runtime": "process"}),
        (BackendTimeout("process", "no answer"), 504, {"runtime": "process"}),
    ],
)
async def test_a_boot_that_fails_is_a_problem_and_nothing_of_it_is_left(
    error: BulkheadError, status: int, extras: dict[str, str]
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


async def test_a_client_that_hangs_up_during_the_boot_leaves_no_sandbox() -> None:
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


async def test_a_client_that_hangs_up_but_chose_an_id_finds_its_sandbox() -> None:
    service = Service()
    gate = service.backend.create_gate = Gate()
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": b'{"id":"mine"}'}, {"type": "http.disconnect"}]
    assert await call(service.app, "POST", "/sandboxes", messages) == []
    gate.open()
    async with service.client() as client:
        assert (await client.get("/sandboxes/mine?wait_seconds=10")).json()["state"] == "running"


async def test_a_hang_up_just_when_the_boot_ends_leaves_no_sandbox() -> None:
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
        async with asyncio.timeout(10):
            await next(iter(service.sandboxes)).settled.wait()
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


# --- what create refuses


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"unknown": 1}, "/unknown"),
        ({"tty": {"rows": 1, "cols": 1}}, "/tty"),
        ({"image": "python"}, "/image"),
        ({"isolation_min": "vm"}, "/isolation_min"),
        ({"secrets": []}, "/secrets"),
        ({"runtime": 1}, "/runtime"),
        ({"id": "Bad"}, "/id"),
        ({"id": "a\n"}, "/id"),
        ({"id": "a" * 64}, "/id"),
        ({"id": ""}, "/id"),
        ({"requires": ["teleport"]}, "/requires/0"),
        ({"requires": "stdin"}, "/requires"),
        ({"env": {"A": 1}}, "/env/A"),
        ({"env": {"A=B": "x"}}, "/env/A=B"),
        ({"env": {"": "x"}}, "/env/"),
        ({"env": {"A": "x\0"}}, "/env/A"),
        ({"env": {"a/b~c": 1}}, "/env/a~1b~0c"),
        ({"env": {f"K{n}": "" for n in range(100_000)}}, "/env"),
        ({"env": {"A": "x" * 140_000}}, "/env/A"),
        ({"env": []}, "/env"),
        ({"workdir": "relative"}, "/workdir"),
        ({"workdir": "/a/../b"}, "/workdir"),
        ({"workdir": "/a\0"}, "/workdir"),
        ({"workdir": "/" + "a" * 5000}, "/workdir"),
        ({"limits": {"cpus": "1"}}, "/limits/cpus"),
        ({"limits": {"cpus": True}}, "/limits/cpus"),
        ({"limits": {"cpus": -1}}, "/limits/cpus"),
        ({"limits": {"cpus": 0}}, "/limits/cpus"),
        ({"limits": {"memory_mib": 1.5}}, "/limits/memory_mib"),
        ({"limits": {"memory_mib": "512"}}, "/limits/memory_mib"),
        ({"limits": {"memory_mib": True}}, "/limits/memory_mib"),
        ({"limits": {"memory_mib": 1}}, "/limits/memory_mib"),
        ({"limits": {"memory_mib": 10**30}}, "/limits/memory_mib"),
        ({"limits": {"swap": 1}}, "/limits/swap"),
        ({"limits": None}, "/limits"),
        ({"policy": {"filesystem": {"read_only": ["usr"]}}}, "/policy/filesystem/read_only/0"),
        ({"policy": {"filesystem": {"read_only": ["/usr/../etc"]}}}, "/policy/filesystem/read_only/0"),
        ({"policy": {"filesystem": {"execute": []}}}, "/policy/filesystem/execute"),
        ({"policy": {"network": {"mode": "direct"}}}, "/policy/network/mode"),
        ({"policy": {"network": {"mode": "none", "allow": []}}}, "/policy/network/allow"),
        ({"policy": {"syscalls": {"profile": "compat"}}}, "/policy/syscalls/profile"),
        ({"ttl_seconds": 0}, "/ttl_seconds"),
        ({"ttl_seconds": "60"}, "/ttl_seconds"),
        ({"ttl_seconds": True}, "/ttl_seconds"),
        ({"idle_seconds": -1}, "/idle_seconds"),
        ({"labels": {"a": 1}}, "/labels/a"),
        ({"labels": {"": "x"}}, "/labels/"),
        ({"labels": {"a:b": "x"}}, "/labels/a:b"),
        ({"labels": {"k" * 64: "x"}}, "/labels/" + "k" * 64),
        ({"labels": {"a": "x" * 256}}, "/labels/a"),
        ({"labels": {"a": "x\0"}}, "/labels/a"),
        ({"labels": {f"k{n}": "" for n in range(65)}}, "/labels"),
        ([], ""),
        (7, ""),
        ("text", ""),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_wrong_field_is_named_and_nothing_is_created(body: Any, pointer: str) -> None:
    problem = await refused(body)
    assert problem["type"] == "/problems/invalid_request"
    assert problem["errors"][0]["pointer"] == pointer
    assert problem["errors"][0]["detail"]
    assert len(json.dumps(problem)) < 20_000


async def test_every_wrong_field_is_named_at_once() -> None:
    problem = await refused({"a": 1, "limits": {"cpus": "x"}, "ttl_seconds": -1})
    assert {e["pointer"] for e in problem["errors"]} == {"/a", "/limits/cpus", "/ttl_seconds"}


async def test_an_unknown_runtime_is_refused_with_the_known_names() -> None:
    problem = await refused({"runtime": "docker"})
    assert problem["type"] == "/problems/unknown_runtime"
    assert problem["runtime"] == "docker"
    assert problem["known"] == ["kernel", "linux", "process"]
    assert (await refused({"runtime": "auto"}))["type"] == "/problems/unknown_runtime"


async def test_a_runtime_that_is_switched_off_is_refused() -> None:
    service = Service([NullBackend(), NullBackend("boxlite", aliases=("vm",), tier="vm")], disabled=("boxlite",))
    problem = await refused({"runtime": "vm"}, service)
    assert problem["type"] == "/problems/runtime_not_enabled"
    assert problem["runtime"] == "boxlite"


async def test_an_unknown_profile_is_refused_with_the_known_names() -> None:
    problem = await refused({"policy": {"profile": "wide"}})
    assert problem["type"] == "/problems/unknown_profile"
    assert problem["known"] == ["default", "loopback", "narrow"]


async def test_a_path_outside_the_profile_is_too_broad() -> None:
    problem = await refused({"policy": {"profile": "narrow", "filesystem": {"read_write": ["/tmp"]}}})
    assert problem["type"] == "/problems/policy_too_broad"
    assert problem["field"] == "policy.filesystem.read_write"
    assert problem["ceiling"] == "/workspace"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limits": {"memory_mib": 5000}}, "limits.memory_mib"),
        ({"limits": {"wall_seconds": 1e300}}, "limits.wall_seconds"),
        ({"ttl_seconds": 1e9}, "ttl_seconds"),
        ({"idle_seconds": 1e9}, "idle_seconds"),
    ],
)
async def test_a_number_above_the_ceiling_names_field_and_ceiling(body: Any, field: str) -> None:
    problem = await refused(body)
    assert problem["type"] == "/problems/limit_too_high"
    assert problem["field"] == field
    assert isinstance(problem["ceiling"], int | float)


async def test_a_missing_capability_is_refused_by_name() -> None:
    problem = await refused({"requires": ["stdin", "pty", "images"]})
    assert problem["type"] == "/problems/capability_missing"
    assert problem["missing"] == ["images", "pty"]


async def test_what_a_runtime_cannot_enforce_is_refused_when_asked_and_null_when_not() -> None:
    less = CAPABILITIES - {Capability.LIMIT_PROCESSES, Capability.FILESYSTEM_POLICY}
    problem = await refused({"limits": {"processes": 5}}, Service([NullBackend(capabilities=less)]))
    assert problem["type"] == "/problems/policy_not_supported"
    assert (problem["field"], problem["runtime"]) == ("limits.processes", "process")
    problem = await refused({"policy": {"filesystem": {}}}, Service([NullBackend(capabilities=less)]))
    assert problem["field"] == "policy.filesystem"
    async with Service([NullBackend(capabilities=less)]).client() as client:
        assert (await client.post("/sandboxes", json={})).json()["limits"]["processes"] is None


async def test_env_over_the_runtimes_own_limits_is_refused() -> None:
    service = Service([NullBackend(command_limits=CommandLimits(variables=2))])
    problem = await refused({"env": {"A": "", "B": "", "C": ""}}, service)
    assert problem["errors"][0]["pointer"] == "/env"


# --- query parameters


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


# --- find


async def test_lists_are_paged_oldest_first_and_miss_nothing() -> None:
    async with Service().client() as client:
        ids = [await create(client) for _ in range(7)]
        seen: list[str] = []
        cursor = ""
        pages = 0
        while True:
            page = (await client.get(f"/sandboxes?limit=3{cursor}")).json()
            schemas.SandboxList.model_validate_json(json.dumps(page))
            seen += [item["id"] for item in page["items"]]
            pages += 1
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
            await create(client, labels={"late": "yes"})
        assert seen[:7] == ids
        assert len(set(seen)) == len(seen)
        assert (pages, len(seen)) == (3, 9)


@pytest.mark.parametrize("cursor", ["x", "MQ%3D%3D", "!!!", "é", "LTE", "MDE", "a" * 65, ""])
async def test_a_bad_cursor_is_refused(cursor: str) -> None:
    async with Service().client() as client:
        answer = await client.get(f"/sandboxes?cursor={cursor}")
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == "query/cursor"


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "1.5"])
async def test_a_bad_limit_is_refused(limit: str) -> None:
    async with Service().client() as client:
        assert (await client.get(f"/sandboxes?limit={limit}")).json()["errors"][0]["pointer"] == "query/limit"


async def test_lists_are_filtered_by_state_runtime_and_labels() -> None:
    service = Service([NullBackend(), NullBackend("boxlite", aliases=("vm",))])
    async with service.client() as client:
        a = await create(client, labels={"team": "a", "url": "http://x"})
        b = await create(client, labels={"team": "b"}, runtime="vm")
        await client.delete(f"/sandboxes/{b}")

        async def found(query: str) -> list[str]:
            answer = await client.get(f"/sandboxes?{query}")
            assert answer.status_code == 200, answer.text
            return [item["id"] for item in answer.json()["items"]]

        assert await found("state=running") == [a]
        assert await found("state=destroyed") == [b]
        assert await found("runtime=vm") == [b]
        assert await found("runtime=linux") == [a]
        assert await found("label=team:a") == [a]
        assert await found("label=team:a&label=url:http://x") == [a]
        assert await found("label=team:a&label=team:b") == []
        assert (await client.get("/sandboxes?label=team")).json()["errors"][0]["pointer"] == "query/label"
        assert (await client.get("/sandboxes?state=paused")).json()["errors"][0]["pointer"] == "query/state"
        assert (await client.get("/sandboxes?runtime=docker")).json()["type"] == "/problems/unknown_runtime"


async def test_an_unknown_id_is_404_on_every_route() -> None:
    async with Service().client() as client:
        path = "/sandboxes/sbx_none"
        answers = [
            await client.get(path),
            await client.patch(path, json={}),
            await client.delete(path),
            await client.get(f"{path}/executions"),
            await client.post(f"{path}/executions", json={"command": ["echo"]}),
            await client.get(f"{path}/executions/exe_none"),
            await client.get(f"{path}/executions/exe_none/output"),
            await client.delete(f"{path}/executions/exe_none"),
            await client.post(f"{path}/executions/exe_none/signal", json={"signal": "INT"}),
        ]
        assert {a.json()["type"] for a in answers} == {"/problems/not_found"}


# --- change and destroy


async def test_patch_changes_only_what_is_given() -> None:
    async with Service().client() as client:
        sandbox = await create(client, idle_seconds=60, labels={"a": "1"})
        before = (await client.get(f"/sandboxes/{sandbox}")).json()
        body = (await client.patch(f"/sandboxes/{sandbox}", json={"ttl_seconds": 7200})).json()
        assert body["expires_at"] > before["expires_at"]
        assert (body["idle_seconds"], body["labels"]) == (60, {"a": "1"})
        body = (await client.patch(f"/sandboxes/{sandbox}", json={"idle_seconds": None, "labels": {"b": "2"}})).json()
        assert (body["idle_seconds"], body["labels"]) == (None, {"b": "2"})
        unchanged = (await client.patch(f"/sandboxes/{sandbox}", json={})).json()
        assert (unchanged["labels"], unchanged["expires_at"]) == ({"b": "2"}, body["expires_at"])


@pytest.mark.parametrize(
    "body", [{"ttl_seconds": None}, {"ttl_seconds": 0}, {"labels": None}, {"idle_seconds": "x"}, {"runtime": "process"}]
)
async def test_patch_refuses_what_it_does_not_take(body: Any) -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        answer = await client.patch(f"/sandboxes/{sandbox}", json=body)
        assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(body))}"


async def test_patch_of_a_destroyed_sandbox_is_409_with_its_state() -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        await client.delete(f"/sandboxes/{sandbox}")
        answer = await client.patch(f"/sandboxes/{sandbox}", json={"ttl_seconds": 10})
        assert answer.status_code == 409
        assert (answer.json()["type"], answer.json()["state"]) == ("/problems/wrong_state", "destroyed")
        too_long = await client.patch(f"/sandboxes/{sandbox}", json={"ttl_seconds": 1e9})
        assert too_long.json()["type"] == "/problems/limit_too_high"


async def test_delete_is_204_again_while_the_record_is_kept_and_then_404() -> None:
    service = Service(capacity=Capacity(record_seconds=0))
    async with service.client() as client:
        sandbox = await create(client)
        assert (await client.delete(f"/sandboxes/{sandbox}")).status_code == 204
        assert service.backend.alive == []
        async with asyncio.timeout(10):
            while (await client.get(f"/sandboxes/{sandbox}")).status_code == 200:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0)
        assert (await client.delete(f"/sandboxes/{sandbox}")).status_code == 404
    async with Service().client() as client:
        sandbox = await create(client)
        for _ in range(3):
            answer = await client.delete(f"/sandboxes/{sandbox}")
            assert (answer.status_code, answer.content) == (204, b"")
        body = (await client.get(f"/sandboxes/{sandbox}")).json()
        assert (body["state"], body["isolation"]) == ("destroyed", None)


async def test_a_destroy_that_the_runtime_cannot_do_is_a_problem() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        service.backend.destroy_error = BackendUnavailable("process", "the launcher is gone", 7)
        answer = await client.delete(f"/sandboxes/{sandbox}")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
        service.backend.destroy_error = None
        assert (await client.delete(f"/sandboxes/{sandbox}")).status_code == 204


async def test_a_lost_sandbox_shows_failed_with_its_reason() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        await service.backend.lose(sandbox, "the worker was killed")
        async with asyncio.timeout(10):
            while (body := (await client.get(f"/sandboxes/{sandbox}")).json())["state"] == "running":  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert (body["state"], body["state_reason"]) == ("failed", "the worker was killed")
