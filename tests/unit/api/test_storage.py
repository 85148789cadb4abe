"""The field `storage`: what a create makes of it, and what it refuses by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.core.capabilities import Capability
from app.core.errors import BackendUnavailable
from app.core.models import SandboxSpec
from app.settings import load_settings
from tests.null_backend import NullBackend, NullSandbox
from tests.unit.api.service import Service, kernel, vm
from tests.unit.api.test_create_refusals import refused


def of_default(storage: str, *backends: Any, **options: Any) -> Service:
    return Service(list(backends) or None, settings=load_settings(storage=storage), **options)


async def created(service: Service, **body: Any) -> dict[str, Any]:
    async with service.client() as client:
        answer = await client.post("/sandboxes", json=body)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        (runtime,) = (backend for backend in service.backends if backend.info.name == found["runtime"])
        spec = runtime.sandboxes[found["id"]].spec
        assert (spec.storage, spec.limits.disk_mib) == (found["storage"], found["limits"]["disk_mib"])
        return found


@pytest.mark.parametrize("default", ["memory", "disk"])
async def test_absent_storage_is_the_operators_and_a_named_one_is_taken(default: str) -> None:
    assert (await created(of_default(default)))["storage"] == default
    assert (await created(of_default(default), storage=None))["storage"] == default
    for asked in ("memory", "disk"):
        assert (await created(of_default(default), storage=asked))["storage"] == asked


async def test_a_runtime_with_disks_alone_has_one_where_the_request_does_not_say() -> None:
    body = await created(of_default("memory", vm(), default="boxlite"), limits={"memory_mib": 64, "disk_mib": 2048})
    assert (body["storage"], body["limits"]["disk_mib"]) == ("disk", 2048)


@pytest.mark.parametrize(
    ("asked", "backend"), [("memory", vm()), ("disk", kernel(lacks=[Capability.STORAGE_DISK]))], ids=["vm", "kernel"]
)
async def test_storage_that_the_runtime_lacks_is_refused_by_name(asked: str, backend: Any) -> None:
    service = Service([backend], default=backend.info.name)
    problem = await refused({"storage": asked, "limits": {"memory_mib": 64, "disk_mib": 128}}, service)
    assert (problem["type"], problem["missing"]) == ("/problems/capability_missing", [f"storage_{asked}"])


async def test_the_operators_disk_is_not_replaced_by_memory() -> None:
    problem = await refused({}, of_default("disk", kernel(lacks=[Capability.STORAGE_DISK])))
    assert (problem["type"], problem["missing"]) == ("/problems/capability_missing", ["storage_disk"])


NO_DISKS = "the runtime 'process' lacks storage_disk, and the operator chose the storage `disk`"


async def test_a_default_storage_that_the_default_runtime_lacks_is_told_before_a_create_is_refused() -> None:
    service = of_default("disk", kernel(lacks=[Capability.STORAGE_DISK]), vm())
    async with service.client() as client:
        answer = await client.get("/readyz")
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (503, "/problems/backend_unavailable")
        assert problem["detail"].startswith(NO_DISKS)
        assert [runtime["ready"] for runtime in problem["runtimes"]] == [False, True]
        assert problem["runtimes"][0]["reason"] == problem["detail"]
        process = (await client.get("/runtimes")).json()["items"][0]
        assert (process["available"], process["reason"]) == (True, None), "requests that name another storage work"
        assert (await client.post("/sandboxes", json={"storage": "memory"})).status_code == 201


@pytest.mark.parametrize("served", [True, False])
async def test_a_default_storage_that_no_runtime_of_auto_has_is_told(served: bool) -> None:
    backends = [kernel(lacks=[Capability.STORAGE_DISK]), *([vm()] if served else [])]
    async with of_default("disk", *backends, default="auto").client() as client:
        answer = await client.get("/readyz")
    assert answer.status_code == (200 if served else 503)
    assert answer.json()["runtimes"][0]["reason"].startswith(NO_DISKS)
    assert served or NO_DISKS in answer.json()["detail"]


@pytest.mark.parametrize(("default", "runtime"), [("memory", "process"), ("disk", "boxlite")])
async def test_a_lack_of_disks_is_no_news_where_nobody_needs_them(default: str, runtime: str) -> None:
    service = of_default(default, kernel(lacks=[Capability.STORAGE_DISK]), vm(), default=runtime)
    async with service.client() as client:
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("lacks", [[Capability.STORAGE_DISK], []])
async def test_the_log_tells_it_when_the_service_starts(lacks: list[Capability]) -> None:
    service = of_default("disk", kernel(lacks=lacks))
    async with service.served() as live, asyncio.timeout(60):
        while not service.logged:  # noqa: ASYNC110 - nobody is told when the runtimes have been asked
            await asyncio.sleep(0)
        service.backend.ready_error = BackendUnavailable("process", "no launcher")
        assert (await live.client.get("/readyz")).json()["detail"] == "no launcher", "who asks now hears of now"
    line = service.logged[0]
    assert (line["event"], line["runtime"], line["available"]) == ("runtime", "process", True)
    assert (line["level"], bool(line["reason"] and line["reason"].startswith(NO_DISKS))) == (
        ("warning", True) if lacks else ("info", False)
    )


@pytest.mark.parametrize(
    ("default", "body", "runtime"),
    [
        ("memory", {}, "process"),
        ("memory", {"storage": "disk"}, "boxlite"),
        ("memory", {"requires": ["storage_disk"]}, "boxlite"),
        ("disk", {}, "boxlite"),
        ("disk", {"storage": "memory"}, "process"),
    ],
)
async def test_auto_goes_by_the_storage_too(default: str, body: dict[str, Any], runtime: str) -> None:
    service = of_default(default, kernel(lacks=[Capability.STORAGE_DISK]), vm())
    found = await created(service, runtime="auto", **body)
    assert found["runtime"] == runtime
    assert ("process lacks storage_disk" in found["runtime_reason"]) == (runtime == "boxlite")


async def test_required_storage_is_refused_where_there_is_none() -> None:
    problem = await refused({"requires": ["storage_memory"]}, Service([vm()], default="boxlite"))
    assert problem["missing"] == ["storage_memory"]


async def test_files_in_memory_are_within_it() -> None:
    assert (await created(Service(), limits={"memory_mib": 64}))["limits"]["disk_mib"] == 64
    assert (await created(Service(), limits={"memory_mib": 1024}))["limits"]["disk_mib"] == 512
    assert (await created(Service(), limits={"memory_mib": 64, "disk_mib": 64}))["limits"]["disk_mib"] == 64
    problem = await refused({"limits": {"memory_mib": 64, "disk_mib": 65}})
    assert (problem["type"], problem["status"]) == ("/problems/limit_too_high", 422)
    assert (problem["pointer"], problem["ceiling"]) == ("/limits/disk_mib", 64)


async def test_a_disk_takes_nothing_of_the_memory() -> None:
    limits = (await created(Service(), storage="disk", limits={"memory_mib": 64, "disk_mib": 2000}))["limits"]
    assert (limits["memory_mib"], limits["disk_mib"]) == (64, 2000)
    assert (await created(Service(), storage="disk", limits={"memory_mib": 64}))["limits"]["disk_mib"] == 512


async def test_a_disk_below_its_least_size_is_refused() -> None:
    problem = await refused({"storage": "disk", "limits": {"disk_mib": 15}})
    assert (problem["type"], problem["status"]) == ("/problems/invalid_request", 422)
    assert [error["pointer"] for error in problem["errors"]] == ["/limits/disk_mib"]
    assert (await created(Service(), storage="disk", limits={"disk_mib": 16}))["limits"]["disk_mib"] == 16


@pytest.mark.parametrize("storage", ["tmpfs", "", 1, True, [], "DISK"])
async def test_an_unknown_kind_is_refused_at_its_place(storage: Any) -> None:
    problem = await refused({"storage": storage})
    assert [error["pointer"] for error in problem["errors"]] == ["/storage"]


async def test_storage_is_part_of_the_body_that_an_id_repeats() -> None:
    async with of_default("memory").client() as client:
        bodies: tuple[dict[str, Any], ...] = ({}, {"storage": "memory"}, {"storage": "disk"})
        answers = [await client.post("/sandboxes", json={"id": "mine", **body}) for body in bodies]
        assert [answer.status_code for answer in answers] == [201, 200, 409]


class Noting(NullBackend):
    """Remembers the specs of its creates: the sandbox of a run is gone when the answer comes."""

    def __init__(self) -> None:
        super().__init__()
        self.specs: list[SandboxSpec] = []

    async def create(self, sandbox_id: str, spec: SandboxSpec) -> NullSandbox:
        self.specs.append(spec)
        return await super().create(sandbox_id, spec)


async def test_a_run_takes_the_same_field() -> None:
    backend = Noting()
    async with Service([backend]).client() as client:
        limits = {"memory_mib": 64, "disk_mib": 200}
        answer = await client.post("/run", json={"command": ["exit", "0"], "storage": "disk", "limits": limits})
        assert answer.status_code == 200, answer.text
        refusal = await client.post("/run", json={"command": ["exit", "0"], "storage": "memory", "limits": limits})
    assert [(spec.storage, spec.limits.disk_mib) for spec in backend.specs] == [("disk", 200)]
    assert (refusal.status_code, refusal.json()["pointer"]) == (422, "/limits/disk_mib")
