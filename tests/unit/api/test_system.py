from __future__ import annotations

import asyncio
import html
from dataclasses import replace

import pytest

from app.api.http.problem_types import PROBLEMS
from app.api.http.readiness import Readiness
from app.api.schemas import answers
from app.core.backend import RuntimeInfo
from app.core.errors import BackendUnavailable, BulkheadError, IsolationUnavailable
from app.core.registry import Registry
from tests.null_backend import NullBackend
from tests.unit.api.service import Service, create, kernel, start, vm


class CountingBackend(NullBackend):
    asked = 0

    async def ready(self) -> None:
        self.asked += 1
        await super().ready()


class SilentBackend(NullBackend):
    async def ready(self) -> None:
        await asyncio.Event().wait()


class LimitedBackend(NullBackend):
    @property
    def info(self) -> RuntimeInfo:
        return replace(super().info, limitation="no egress")


class ClosingBackend(NullBackend):
    closed = 0

    async def aclose(self) -> None:
        self.closed += 1
        await super().aclose()


class UnopenedBackend(NullBackend):
    def open(self) -> None:
        raise RuntimeError("no loop")


async def test_runtimes_say_what_they_can_do_and_how_much() -> None:
    service = Service(
        [NullBackend(), NullBackend("boxlite", aliases=("vm", "microvm"), tier="vm")], disabled=("boxlite",)
    )
    async with service.client() as client:
        answer = await client.get("/runtimes")
        answers.RuntimeList.model_validate_json(answer.content)
        process, boxlite = answer.json()["items"]
    assert (process["name"], process["aliases"], process["tier"]) == ("process", ["kernel", "linux"], "kernel")
    assert (process["enabled"], process["available"], process["reason"]) == (True, True, None)
    assert process["capabilities"] == sorted(process["capabilities"])
    assert process["limits"]["memory_mib"] == {"default": 512, "ceiling": 4096}
    for name in ("memory_mib", "processes", "disk_mib", "output_bytes"):
        assert {type(value) for value in process["limits"][name].values()} == {int}, name
    assert process["limits"]["argument_bytes"] == {"default": None, "ceiling": 131_071}
    assert (boxlite["enabled"], boxlite["available"]) == (False, False)
    assert "not enabled" in boxlite["reason"]


async def test_a_runtime_that_does_not_work_says_why() -> None:
    service = Service()
    service.backend.ready_error = IsolationUnavailable("landlock", "this kernel has no Landlock")
    async with service.client() as client:
        (runtime,) = (await client.get("/runtimes")).json()["items"]
    assert (runtime["available"], runtime["reason"]) == (False, "this kernel has no Landlock")


@pytest.mark.parametrize(
    ("error", "slug"),
    [
        (BackendUnavailable("process", "no launcher"), "backend_unavailable"),
        (IsolationUnavailable("landlock", "no Landlock"), "isolation_unavailable"),
    ],
)
async def test_readyz_is_503_with_the_reason_while_the_default_runtime_does_not_work(
    error: BulkheadError, slug: str
) -> None:
    service = Service([NullBackend(), NullBackend("boxlite")])
    service.backend.ready_error = error
    async with service.client() as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["type"] == f"/problems/{slug}"
    assert answer.json()["runtimes"] == [
        {"name": "process", "ready": False, "reason": str(error)},
        {"name": "boxlite", "ready": True, "reason": None},
    ]


async def test_readyz_is_200_while_only_another_runtime_does_not_work() -> None:
    service = Service([NullBackend(), NullBackend("boxlite")])
    service.backends[1].ready_error = BackendUnavailable("boxlite", "no server")
    async with service.client() as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 200
    answers.Ready.model_validate_json(answer.content)
    assert [r["ready"] for r in answer.json()["runtimes"]] == [True, False]


async def test_readyz_is_503_when_the_default_runtime_is_switched_off() -> None:
    async with Service(disabled=("process",)).client() as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["runtimes"] == []


async def test_the_runtime_is_asked_once_for_many_and_at_most_once_a_second() -> None:
    backend = CountingBackend()
    async with Service([backend]).client() as client:
        await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
        await client.get("/runtimes")
    assert backend.asked == 1


async def test_a_runtime_that_does_not_answer_is_not_ready() -> None:
    noted: list[tuple[str, BulkheadError | None, BulkheadError | None]] = []
    backend = SilentBackend()
    readiness = Readiness(Registry([backend], default="process"), lambda *told: noted.append(told), answer_seconds=0.01)
    error = await readiness.of(backend)
    assert isinstance(error, BackendUnavailable)
    assert noted == [("process", error, None)]


async def test_limitation_of_a_runtime_that_works_is_told_and_it_is_ready() -> None:
    noted: list[tuple[str, BulkheadError | None, BulkheadError | None]] = []
    backend = LimitedBackend()
    error = await Readiness(Registry([backend], default="process"), lambda *told: noted.append(told)).of(backend)
    assert error is None
    ((_, _, limitation),) = noted
    assert str(limitation) == "no egress"
    async with Service([backend]).client() as client:
        (ready,) = (await client.get("/readyz")).json()["runtimes"]
        (runtime,) = (await client.get("/runtimes")).json()["items"]
    assert ready == {"name": "process", "ready": True, "reason": "no egress"}
    assert (runtime["available"], runtime["reason"]) == (True, "no egress")


async def test_healthz_is_alive_whatever_the_runtimes_do() -> None:
    service = Service()
    service.backend.ready_error = BackendUnavailable("process", "no launcher")
    async with service.client() as client:
        assert (await client.get("/healthz")).json() == {"status": "alive"}


async def test_metrics_count_by_runtime_and_reason() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        await start(client, sandbox, "sleep")
        path = await start(client, sandbox, "exit", "3")
        await client.get(f"{path}?wait_seconds=60")
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answer.text.splitlines()
        for line in (
            'bulkhead_sandboxes_created_total{runtime="process"} 1.0',
            'bulkhead_sandboxes{runtime="process",state="running"} 1.0',
            'bulkhead_executions_started_total{runtime="process"} 2.0',
            'bulkhead_executions_ended_total{reason="exited",runtime="process"} 1.0',
            'bulkhead_executions_running{runtime="process"} 1.0',
            'bulkhead_sandbox_create_seconds_count{runtime="process"} 1.0',
            'bulkhead_execution_start_seconds_count{runtime="process"} 2.0',
            'bulkhead_runtime_healthy{runtime="process"} 1.0',
        ):
            assert line in lines
        service.backend.ready_error = BackendUnavailable("process", "no launcher")
        await client.delete(f"/sandboxes/{sandbox}")
        text = service.telemetry.render().decode()
        assert 'bulkhead_sandboxes_ended_total{reason="destroyed",runtime="process"} 1.0' in text
        assert 'bulkhead_executions_ended_total{reason="killed",runtime="process"} 1.0' in text


async def test_metrics_count_requests_by_class_of_status() -> None:
    service = Service()
    async with service.client() as client:
        await create(client)
        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.post("/sandboxes", json=[])).status_code == 422
        service.backend.create_error = BackendUnavailable("process", "no launcher")
        assert (await client.post("/sandboxes", json={})).status_code == 503
    lines = service.telemetry.render().decode().splitlines()
    counts = {f'bulkhead_requests_total{{status="{n}xx"}}': count for n, count in enumerate((0, 1, 0, 2, 1), start=1)}
    assert {f"{name} {count}.0" for name, count in counts.items()} <= set(lines)


async def test_every_problem_has_a_page_for_people() -> None:
    async with Service().client() as client:
        for slug, kind in PROBLEMS.items():
            answer = await client.get(f"/problems/{slug}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/html")
            assert html.escape(kind.title) in answer.text
        assert (await client.get("/problems/nope")).json()["type"] == "/problems/not_found"


async def test_each_enabled_runtime_is_opened_once_at_the_start_and_no_other() -> None:
    service = Service([kernel(), vm(), NullBackend("other", aliases=())], disabled=("boxlite",))
    assert [backend.opened for backend in service.backends] == [0, 0, 0]
    async with service.served() as live:
        assert (await live.client.get("/healthz")).status_code == 200
        assert [backend.opened for backend in service.backends] == [1, 0, 1]
        await live.start("sleep")
        assert (await live.client.get("/runtimes")).status_code == 200
    assert [backend.opened for backend in service.backends] == [1, 0, 1]


async def test_a_runtime_that_cannot_be_opened_stops_the_start_and_closes_the_others() -> None:
    service = Service([ClosingBackend(), UnopenedBackend("boxlite")])
    with pytest.raises(RuntimeError, match="no loop"):
        async with service.app.router.lifespan_context(service.app):
            raise AssertionError("it started")
    assert isinstance(service.backend, ClosingBackend)
    assert (service.backend.opened, service.backend.closed) == (1, 1)


async def test_lifespan_end_destroys_everything() -> None:
    service = Service()
    async with service.served() as live:
        await live.start("daemon", "sleep")
        assert len(service.backend.alive) == 3
    assert service.backend.alive == []


async def test_a_host_that_is_not_ours_learns_only_whether_the_service_is_ready() -> None:
    """A page that made its own name lead to this address may read what it gets."""
    broken = NullBackend()
    foreign = {"host": "evil.example"}
    for service, status in ((Service(), 200), (Service([broken]), 503)):
        if status == 503:
            broken.ready_error = BackendUnavailable("process", "the launcher at /run/secret is gone")
        async with service.client() as client:
            mine, theirs = await client.get("/readyz"), await client.get("/readyz", headers=foreign)
            assert (mine.status_code, theirs.status_code) == (status, status)
            assert "process" in mine.text
            assert theirs.json()["runtimes"] == []
            assert "process" not in theirs.text
            assert "secret" not in theirs.text
            assert (await client.get("/healthz", headers=foreign)).json() == {"status": "alive"}


async def test_the_files_of_the_documents_are_packed_and_kept() -> None:
    async with Service().client() as client:
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            plain = await client.get(f"/docs/{name}", headers={"accept-encoding": "identity"})
            packed = await client.get(f"/docs/{name}", headers={"accept-encoding": "br, gzip"})
            assert packed.content == plain.content
            assert packed.headers["content-encoding"] == "gzip"
            assert int(packed.headers["content-length"]) * 3 < int(plain.headers["content-length"])
            assert packed.headers["cache-control"] == plain.headers["cache-control"] == "max-age=86400"
            assert packed.headers["etag"] != plain.headers["etag"]
            for answer, encoding in ((plain, "gzip;q=0"), (packed, "gzip")):
                known = {"if-none-match": f'"other", W/{answer.headers["etag"]}', "accept-encoding": encoding}
                again = await client.get(f"/docs/{name}", headers=known)
                assert (again.status_code, again.content) == (304, b"")
        assert (await client.get("/docs")).headers["cache-control"] == "no-store"
