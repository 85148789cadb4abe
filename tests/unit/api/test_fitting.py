"""What a runtime makes of a request: images, limits that it rounds, parts of a policy that it has or has not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.core.backend import CommandLimits
from app.core.capabilities import Capability
from app.core.errors import UnknownImage
from app.core.models import SandboxSpec
from tests.null_backend import NullBackend
from tests.unit.api.service import Service, create, kernel, start, vm
from tests.unit.api.test_create_refusals import refused


class Rounding(NullBackend):
    """Whole cpus and whole GiB; the image `python`, and none by default."""

    def fit(self, spec: SandboxSpec) -> SandboxSpec:
        if spec.image != "python":
            raise UnknownImage(spec.image, ["python"])
        cpus, disk = float(-(-spec.limits.cpus // 1)), -(-spec.limits.disk_mib // 1024) * 1024
        return replace(spec, limits=replace(spec.limits, cpus=cpus, disk_mib=disk))


async def created(service: Service, **body: Any) -> dict[str, Any]:
    async with service.client() as client:
        answer = await client.post("/sandboxes", json=body)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        assert (await client.get(f"/sandboxes/{found['id']}")).json()["limits"] == found["limits"]
        return found


# --- images


async def test_an_image_is_a_capability() -> None:
    problem = await refused({"image": "python"}, Service([kernel()]))
    assert problem["type"] == "/problems/capability_missing"
    assert (problem["missing"], problem["runtime"]) == (["images"], "process")


async def test_the_image_reaches_the_runtime_and_stands_in_the_answer() -> None:
    service = Service([vm()], default="boxlite")
    async with service.client() as client:
        sandbox = await create(client, image="docker.io/library/python:3.12")
        assert (await client.get(f"/sandboxes/{sandbox}")).json()["image"] == "docker.io/library/python:3.12"
        assert service.backend.sandboxes[sandbox].spec.image == "docker.io/library/python:3.12"


async def test_without_an_image_the_answer_has_the_runtimes_own() -> None:
    assert (await created(Service([kernel()])))["image"] is None
    backend = vm()
    backend.image = "debian"
    assert (await created(Service([backend], default="boxlite")))["image"] == "debian"


@pytest.mark.parametrize(("body", "detail"), [({}, "no image was named"), ({"image": "perl"}, "no image 'perl'")])
async def test_an_unknown_image_is_refused_with_the_known_names(body: dict[str, Any], detail: str) -> None:
    problem = await refused(body, Service([vm(kind=Rounding)], default="boxlite"))
    assert (problem["type"], problem["status"]) == ("/problems/unknown_image", 422)
    assert problem["known"] == ["python"]
    assert detail in problem["detail"]


async def test_the_image_is_part_of_the_body_that_an_id_repeats() -> None:
    backend = vm()
    backend.image = "debian"
    async with Service([backend], default="boxlite").client() as client:
        first = await client.post("/sandboxes", json={"id": "mine"})
        same = await client.post("/sandboxes", json={"id": "mine", "image": "debian"})
        other = await client.post("/sandboxes", json={"id": "mine", "image": "python"})
        assert [first.status_code, same.status_code, other.status_code] == [201, 200, 409]


# --- limits


async def test_the_answer_shows_the_limits_as_the_runtime_rounds_them() -> None:
    service = Service([vm(kind=Rounding)], default="boxlite")
    body = await created(service, image="python", limits={"cpus": 1.5, "disk_mib": 600, "memory_mib": 300})
    assert (body["limits"]["cpus"], body["limits"]["disk_mib"], body["limits"]["memory_mib"]) == (2.0, 1024, 300)
    assert body["limits"]["processes"] is None


async def test_limits_that_round_to_the_same_are_the_same_body() -> None:
    async with Service([vm(kind=Rounding)], default="boxlite").client() as client:
        answers = [
            await client.post("/sandboxes", json={"id": "mine", "image": "python", "limits": {"cpus": cpus}})
            for cpus in (1.5, 2, 0.5)
        ]
        assert [answer.status_code for answer in answers] == [201, 200, 409]


async def test_a_runtimes_own_ceiling_is_shown_and_holds() -> None:
    def service() -> Service:
        return Service([kernel(ceilings={"cpus": 0.5, "memory_mib": 256, "disk_mib": 10**6})])

    async with service().client() as client:
        (runtime,) = (await client.get("/runtimes")).json()["items"]
        assert runtime["limits"]["cpus"] == {"default": 0.5, "ceiling": 0.5}
        assert runtime["limits"]["memory_mib"] == {"default": 256, "ceiling": 256}
        assert runtime["limits"]["disk_mib"]["ceiling"] < 10**6, "the operator's is lower"
        limits = (await client.post("/sandboxes", json={})).json()["limits"]
        assert (limits["cpus"], limits["memory_mib"]) == (0.5, 256)
    problem = await refused({"limits": {"memory_mib": 257}}, service())
    assert problem["type"] == "/problems/limit_too_high"
    assert (problem["pointer"], problem["ceiling"]) == ("/limits/memory_mib", 256)


async def test_only_limits_that_are_enforced_are_listed() -> None:
    async with Service([vm()], default="boxlite").client() as client:
        (runtime,) = (await client.get("/runtimes")).json()["items"]
    assert "processes" not in runtime["limits"]
    assert {"cpus", "memory_mib", "disk_mib", "output_bytes", "wall_seconds"} < set(runtime["limits"])


# --- policy


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"profile": "narrow"}, "/policy/profile"),
        ({"filesystem": {}}, "/policy/filesystem"),
        ({"filesystem": {"read_only": ["/usr"]}}, "/policy/filesystem"),
        ({"syscalls": {}}, "/policy/syscalls"),
        ({"syscalls": {"profile": "default"}}, "/policy/syscalls"),
        ({"network": {"mode": "direct", "allow": ["files.example.org"]}}, "/policy/network/mode"),
    ],
    ids=repr,
)
async def test_a_part_that_the_runtime_does_not_enforce_is_refused_by_name(policy: dict[str, Any], field: str) -> None:
    problem = await refused({"policy": policy}, Service([vm()], default="boxlite"))
    assert problem["type"] == "/problems/policy_not_supported"
    assert (problem["pointer"], problem["runtime"]) == (field, "boxlite")


@pytest.mark.parametrize(
    "policy",
    [{}, {"profile": "default"}, {"filesystem": None}, {"network": {"mode": "none"}}, {"network": {}}],
    ids=repr,
)
async def test_parts_that_are_not_enforced_are_null_in_the_answer(policy: dict[str, Any]) -> None:
    body = await created(Service([vm()], default="boxlite"), policy=policy)
    assert body["policy"] == {
        "profile": "default",
        "filesystem": None,
        "network": {"mode": "none", "allow": []},
        "syscalls": None,
        "loopback_tcp": None,
    }


async def test_parts_that_are_enforced_are_in_the_answer() -> None:
    body = await created(Service([kernel()]), policy={"profile": "loopback", "syscalls": {}})
    assert body["policy"]["loopback_tcp"] is True
    assert body["policy"]["syscalls"] == {"profile": "default"}
    assert body["policy"]["filesystem"]["read_only"] == ["/usr", "/etc"]


# --- network


async def test_direct_reaches_the_hosts_that_are_named() -> None:
    service = Service([vm(Capability.NETWORK_DIRECT)], default="boxlite")
    async with service.client() as client:
        network = {"mode": "direct", "allow": ["files.example.org", "*.example.net", "10.0.0.0/8"]}
        answer = await client.post("/sandboxes", json={"policy": {"network": network}})
        assert answer.json()["policy"]["network"] == network
        given = service.backend.sandboxes[answer.json()["id"]].spec.policy.network
        assert (given.mode, list(given.allow)) == ("direct", network["allow"])


@pytest.mark.parametrize(
    ("network", "pointer"),
    [
        ({"mode": "direct"}, "/policy/network/allow"),
        ({"mode": "direct", "allow": []}, "/policy/network/allow"),
        ({"mode": "none", "allow": ["files.example.org"]}, "/policy/network/allow"),
        ({"allow": ["files.example.org"]}, "/policy/network/allow"),
        ({"mode": "direct", "allow": [""]}, "/policy/network/allow/0"),
        ({"mode": "direct", "allow": ["x" * 262]}, "/policy/network/allow/0"),
        ({"mode": "direct", "allow": ["x"] * 65}, "/policy/network/allow"),
        ({"mode": "direct", "allow": "files.example.org"}, "/policy/network/allow"),
        ({"mode": "bridge", "allow": ["files.example.org"]}, "/policy/network/mode"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_hosts_and_mode_belong_together(network: dict[str, Any], pointer: str) -> None:
    service = Service([vm(Capability.NETWORK_DIRECT)], default="boxlite")
    problem = await refused({"policy": {"network": network}}, service)
    assert problem["type"] == "/problems/invalid_request"
    assert problem["errors"][0]["pointer"] == pointer


# --- reserved names


RESERVED = CommandLimits(reserved=frozenset({"BOXLITE_EXECUTOR"}))


async def test_a_name_of_the_runtimes_own_is_refused_in_the_environment_of_a_sandbox() -> None:
    problem = await refused({"env": {"A": "1", "BOXLITE_EXECUTOR": "x"}}, Service([kernel(command_limits=RESERVED)]))
    assert problem["type"] == "/problems/invalid_request"
    assert [error["pointer"] for error in problem["errors"]] == ["/env/BOXLITE_EXECUTOR"]


async def test_a_name_of_the_runtimes_own_is_refused_in_the_environment_of_a_command() -> None:
    service = Service([kernel(command_limits=RESERVED)])
    async with service.client() as client:
        sandbox = await create(client)
        path = f"/sandboxes/{sandbox}/executions"
        answer = await client.post(path, json={"command": ["env"], "env": {"BOXLITE_EXECUTOR": "x"}})
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/env/BOXLITE_EXECUTOR"]
        assert (await client.get(path)).json()["items"] == []
        await start(client, sandbox, "env", env={"BOXLITE": "x"})


async def test_a_name_is_reserved_only_where_it_means_something() -> None:
    service = Service([kernel(), vm(command_limits=RESERVED)])
    async with service.client() as client:
        await create(client, env={"BOXLITE_EXECUTOR": "x"})
    assert service.backends[0].created != []
