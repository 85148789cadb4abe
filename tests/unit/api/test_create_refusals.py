from __future__ import annotations

import json
from typing import Any

import pytest

from app.core.backend import CommandLimits
from app.core.capabilities import Capability
from tests.null_backend import CAPABILITIES, NullBackend
from tests.unit.api.service import Service


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


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"unknown": 1}, "/unknown"),
        ({"tty": {"rows": 1, "cols": 1}}, "/tty"),
        ({"image": ""}, "/image"),
        ({"image": "x" * 513}, "/image"),
        ({"image": 3}, "/image"),
        ({"isolation_min": "vm"}, "/isolation_min"),
        ({"isolation_min": "hypervisor"}, "/isolation_min"),
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
        ({"env": {f"K{n}": "" for n in range(10_000)}}, "/env"),
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
        ({"policy": {"network": {"mode": "bridge"}}}, "/policy/network/mode"),
        ({"policy": {"network": {"mode": "none", "deny": []}}}, "/policy/network/deny"),
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
    assert problem["known"] == ["auto", "kernel", "linux", "process"]


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
    assert problem["pointer"] == "/policy/filesystem/read_write"
    assert problem["ceiling"] == "/workspace"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limits": {"memory_mib": 5000}}, "/limits/memory_mib"),
        ({"limits": {"wall_seconds": 1e300}}, "/limits/wall_seconds"),
        ({"ttl_seconds": 1e9}, "/ttl_seconds"),
        ({"idle_seconds": 1e9}, "/idle_seconds"),
    ],
)
async def test_a_number_above_the_ceiling_names_field_and_ceiling(body: Any, field: str) -> None:
    problem = await refused(body)
    assert problem["type"] == "/problems/limit_too_high"
    assert problem["pointer"] == field
    assert isinstance(problem["ceiling"], int | float)


async def test_a_missing_capability_is_refused_by_name() -> None:
    problem = await refused({"requires": ["stdin", "network_proxy", "network_direct"]})
    assert problem["type"] == "/problems/capability_missing"
    assert problem["missing"] == ["network_direct", "network_proxy"]


async def test_what_a_runtime_cannot_enforce_is_refused_when_asked_and_null_when_not() -> None:
    less = CAPABILITIES - {Capability.LIMIT_PROCESSES, Capability.FILESYSTEM_POLICY}
    problem = await refused({"limits": {"processes": 5}}, Service([NullBackend(capabilities=less)]))
    assert problem["type"] == "/problems/policy_not_supported"
    assert (problem["pointer"], problem["runtime"]) == ("/limits/processes", "process")
    problem = await refused({"policy": {"filesystem": {}}}, Service([NullBackend(capabilities=less)]))
    assert problem["pointer"] == "/policy/filesystem"
    async with Service([NullBackend(capabilities=less)]).client() as client:
        assert (await client.post("/sandboxes", json={})).json()["limits"]["processes"] is None


async def test_env_over_the_runtimes_own_limits_is_refused() -> None:
    service = Service([NullBackend(command_limits=CommandLimits(variables=2))])
    problem = await refused({"env": {"A": "", "B": "", "C": ""}}, service)
    assert problem["errors"][0]["pointer"] == "/env"
