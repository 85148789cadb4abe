"""The whole service over a server that fails: problems, states, readiness and streams as a client sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.backends.boxlite.timeouts import ServerTimeouts
from app.core.sandboxes import Capacity
from tests.boxlite.double import Answer, Attach, Drop, Route, Settings, Stall
from tests.boxlite.double.http import Failure
from tests.boxlite.rig import QUICK, Rig, quick, rig, until
from tests.null_backend import NullBackend
from tests.unit.api.service import LiveService, Service, create, frames_of

BODY: dict[str, Any] = {"limits": {"memory_mib": 64}}


@asynccontextmanager
async def service(
    settings: Settings | None = None, timeouts: ServerTimeouts = QUICK, *, default: str = "boxlite", **changes: Any
) -> AsyncIterator[tuple[Rig, LiveService]]:
    """Over HTTP and WebSocket on loopback; boxlite beside a process runtime that always works."""
    async with rig(settings, timeouts, opened=False, **changes) as r:
        whole = Service([NullBackend(), r.backend], default=default, capacity=Capacity(record_seconds=60))  # type: ignore[list-item]
        async with whole.served() as live:
            yield r, live


async def refused(live: LiveService, status: int, kind: str, **body: Any) -> dict[str, Any]:
    answer = await live.client.post("/sandboxes", json={**BODY, **body}, timeout=60)
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["type"].rsplit("/", 1)[-1]) == (status, kind), problem
    return problem


async def ended(live: LiveService, path: str) -> dict[str, Any]:
    answer = await live.client.get(f"{path}?wait_seconds=60", timeout=90)
    found: dict[str, Any] = answer.json()
    assert found["state"] == "ended", found
    return found


# --- problems


@pytest.mark.parametrize(
    ("failure", "times", "status", "kind"),
    [
        (None, 2, 503, "backend_unavailable"),
        (Failure("engine_unavailable", "the VM failed to start"), 1, 503, "backend_unavailable"),
        (Failure("storage_error", "Failed to pull image"), 1, 502, "backend_error"),
        (Failure("image_pull_failed", "DiffID"), 1, 502, "backend_error"),
    ],
)
async def test_a_failed_boot_is_a_problem_with_the_upstreams_status_and_code(
    failure: Failure | None, times: int, status: int, kind: str
) -> None:
    async with service() as (r, live):
        r.double.faults.fail_boot(times, failure)
        problem = await refused(live, status, kind)
        code = failure.code if failure else "engine_unavailable"
        upstream = {503: 503, 502: {"storage_error": 500}.get(code, 422)}[status]
        assert (problem["runtime"], problem["upstream_status"], problem["upstream_code"]) == ("boxlite", upstream, code)
        assert not r.double.boxes and (await live.client.get("/sandboxes")).json()["items"] == []


async def test_a_boot_without_an_answer_is_a_timeout() -> None:
    async with service(boot_seconds=0.5) as (r, live):
        r.double.faults.on(Route.START, Stall(), times=1)
        problem = await refused(live, 504, "backend_timeout")
        assert (problem["upstream_status"], problem["upstream_code"]) == (None, None)
        await until(lambda: not r.double.boxes)


async def test_a_dead_server_is_unavailable_and_says_when_to_come_back() -> None:
    async with service() as (r, live):
        await r.double.crash()
        await until(lambda: r.backend._health_check._failure is not None)
        problem = await refused(live, 503, "backend_unavailable")
        assert problem["upstream_status"] is None and "cannot be reached" in problem["detail"]
        answer = await live.client.post("/sandboxes", json=BODY)
        assert int(answer.headers["retry-after"]) >= 1
        await r.double.restart()
        await until(lambda: r.backend._health_check._failure is None)
        await create(live.client, **BODY)


@pytest.mark.parametrize("place", ["sandbox", "execution"])
@pytest.mark.parametrize("name", ["BOXLITE_EXECUTOR", "BULKHEAD_EXECUTION"])
async def test_a_name_that_means_something_to_the_server_never_comes_from_a_client(place: str, name: str) -> None:
    async with service() as (r, live):
        if place == "sandbox":
            answer = await live.client.post("/sandboxes", json={**BODY, "env": {name: "guest"}})
        else:
            sandbox = await create(live.client, **BODY)
            answer = await live.client.post(
                f"/sandboxes/{sandbox}/executions", json={"command": ["id"], "env": {name: "guest"}}
            )
        assert answer.status_code == 422 and name in answer.text
        assert all(name not in (request.json or {}).get("env", {}) or name == "BULKHEAD_EXECUTION"
                   for request in r.double.sent(Route.EXEC))  # fmt: skip
        smuggled = await live.client.post("/sandboxes", json={**BODY, "env": {f"{name}=guest": ""}})
        assert smuggled.status_code == 422


async def test_a_string_that_would_hang_the_server_is_refused_before_it() -> None:
    async with service() as (r, live):
        sandbox = await create(live.client, **BODY)
        sent = len(r.double.sent(Route.EXEC))
        for command in (["echo", "x" * 131_072], ["echo", *["x" * 50_000] * 4], ["echo", "a\0b"], ["echo", "\ud800"]):
            text = json.dumps({"command": command})
            answer = await live.client.post(
                f"/sandboxes/{sandbox}/executions", content=text, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 422, answer.text
        assert len(r.double.sent(Route.EXEC)) == sent


async def test_environment_and_working_directory_of_a_sandbox_are_part_of_every_command() -> None:
    async with service() as (r, live):
        sandbox = await create(live.client, **BODY, env={"A": "1", "B": "2"}, workdir="/tmp")
        path = await live.start("sh", "-c", "echo $A $B $C; pwd", sandbox=sandbox, env={"B": "3", "C": "4"})
        assert (await ended(live, path))["exit"]["code"] == 0
        assert (await live.client.get(f"{path}/output?channel=stdout")).text == "1 3 4\n/tmp\n"
        assert "env" not in r.double.sent(Route.CREATE)[0].json


# --- states


async def test_a_sandbox_is_creating_until_its_box_runs_and_the_receipt_tells_how_long_that_was() -> None:
    async with service(Settings(boot_seconds=0.4)) as (_, live):
        answer = await live.client.post("/sandboxes?wait_seconds=0", json={**BODY, "id": "mine"})
        assert answer.json()["state"] == "creating"
        found = (await live.client.get("/sandboxes/mine?wait_seconds=60", timeout=90)).json()
        assert found["state"] == "running" and found["isolation"]["boot_seconds"] >= 0.4


async def test_a_client_that_disconnects_during_a_boot_does_not_disconnect_from_the_server() -> None:
    async with service() as (r, live):
        boot = Stall(until=asyncio.Event())
        r.double.faults.on(Route.START, boot, times=1)
        asking = asyncio.get_running_loop().create_task(live.client.post("/sandboxes", json=BODY, timeout=60))
        await boot.reached.wait()
        asking.cancel()
        await r.beats(2)
        (box,) = r.double.boxes
        assert box.status != "failed" and boot.until is not None
        boot.until.set()
        await until(lambda: not r.double.boxes)
        assert r.routes()[-2:] == [Route.STOP, Route.DELETE]


async def test_a_server_that_is_gone_for_long_fails_the_sandbox_with_the_reason() -> None:
    async with service(grace_seconds=0.5) as (r, live):
        sandbox = await create(live.client, **BODY)
        path = await live.start("sleep", "1000", sandbox=sandbox)
        await r.double.crash()
        exit_ = (await ended(live, path))["exit"]
        assert exit_["reason"] == "lost" and exit_["code"] is None
        found = (await live.client.get(f"/sandboxes/{sandbox}")).json()
        assert found["state"] == "failed" and "has not worked for" in found["state_reason"]
        assert (await live.client.delete(f"/sandboxes/{sandbox}")).status_code in {200, 204}
        await r.double.restart()
        await until(lambda: not r.double.boxes)


# --- readiness


async def ready(client: httpx.AsyncClient, *, boxlite: bool) -> httpx.Response:
    """The first answer of /readyz that says so: the edge trusts an earlier one for a second."""
    async with asyncio.timeout(60):
        while True:
            answer = await client.get("/readyz")
            if [item["ready"] for item in answer.json()["runtimes"] if item["name"] == "boxlite"] == [boxlite]:
                return answer
            await asyncio.sleep(0.05)


async def test_readiness_is_the_truth_and_costs_the_other_runtime_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(timeouts=quick(health_answer=1), default="process") as (r, live):
        assert (await live.client.get("/readyz")).status_code == 200
        r.double.faults.on(Route.LIST, Stall())
        await until(lambda: r.backend._health_check._failure is not None)
        await ready(live.client, boxlite=False)
        runtimes = {item["name"]: item for item in (await live.client.get("/runtimes")).json()["items"]}
        assert runtimes["process"]["available"] and not runtimes["boxlite"]["available"]
        assert "did not answer" in runtimes["boxlite"]["reason"]
        assert (await live.client.get("/readyz")).status_code == 200, "the default works"
        monkeypatch.setattr(r.backend, "ready", asyncio.Event().wait)
        assert (await live.client.post("/sandboxes", json={})).status_code == 201, "it does not wait for the other"
        r.double.faults.clear()


async def test_a_default_that_does_not_work_is_not_ready_and_is_ready_again() -> None:
    async with service() as (r, live):
        assert (await live.client.get("/readyz")).status_code == 200
        await r.double.crash()
        await until(lambda: r.backend._health_check._failure is not None)
        answer = await ready(live.client, boxlite=False)
        assert answer.status_code == 503 and "cannot be reached" in answer.text and r.double.key not in answer.text
        await r.double.restart()
        await until(lambda: r.backend._health_check._failure is None)
        assert (await ready(live.client, boxlite=True)).status_code == 200


# --- executions and streams


async def test_the_deadline_is_our_own_clock() -> None:
    async with service() as (r, live):
        sandbox = await create(live.client, **BODY)
        path = await live.start("sh", "-c", "trap '' TERM; sleep 1000", sandbox=sandbox, timeout_seconds=0.5)
        exit_ = (await ended(live, path))["exit"]
        assert (exit_["reason"], exit_["signal"]) == ("timeout", "SIGKILL")
        assert "still running after 0.5 s" in exit_["detail"] and "may live on" in exit_["detail"]
        assert not r.marked()


async def test_a_delete_ends_with_sigkill_and_says_what_may_live_on() -> None:
    async with service() as (_, live):
        sandbox = await create(live.client, **BODY)
        hidden = "setsid env -i sh -c 'echo hidden; while :; do sleep 1000; done' & wait"
        path = await live.start("sh", "-c", hidden, sandbox=sandbox)
        async with live.stream(path) as socket:
            await socket.recv()
            assert (await live.client.delete(path, timeout=60)).status_code in {200, 204}
            texts, _ = await frames_of(socket)
        assert texts[-1]["type"] == "exit"
        exit_ = (await ended(live, path))["exit"]
        assert (exit_["reason"], exit_["signal"]) == ("killed", "SIGKILL") and "may live on" in exit_["detail"]


async def test_a_stream_over_a_cut_has_every_byte_once() -> None:
    async with service() as (r, live):
        sandbox = await create(live.client, **BODY)
        r.double.faults.on(Route.ATTACH, Attach(cut_after=20), times=2)
        path = await live.start("sh", "-c", "seq -w 1 20000", sandbox=sandbox, output_mode="plain")
        async with live.stream(path) as socket:
            texts, channels = await frames_of(socket)
        assert channels[1] == b"".join(b"%05d\n" % n for n in range(1, 20001))
        assert [text["type"] for text in texts if text["type"] in {"gap", "exit"}] == ["exit"]
        dropped = (await ended(live, path))["output"]["stdout"]["dropped_bytes"]
        assert dropped is None, "nobody can know"


async def test_a_cut_that_is_longer_than_the_backlog_is_a_gap_of_unknown_size() -> None:
    async with service() as (r, live):
        sandbox = await create(live.client, **BODY)
        r.double.faults.on(Route.ATTACH, Attach(cut_after=50), times=1)
        r.double.faults.on(Route.ATTACH, away := Stall(until=asyncio.Event()), times=1)
        path = await live.start("sh", "-c", "seq -w 1 200000", sandbox=sandbox, output_mode="plain")
        async with live.stream(path) as socket:
            await away.reached.wait()
            await until(lambda: not r.marked())
            assert away.until is not None
            away.until.set()
            texts, channels = await frames_of(socket)
        gaps = [text for text in texts if text["type"] == "gap"]
        assert len(gaps) == 1 and channels[1].endswith(b"200000\n")
        assert len(channels[1]) < 1_400_000


async def test_stdin_beyond_its_bound_is_a_problem_on_the_stream_and_not_the_end() -> None:
    async with service(stdin_mib=1) as (_, live):
        sandbox = await create(live.client, **BODY)
        path = await live.start("wc", "-c", sandbox=sandbox, stdin="open", output_mode="plain")
        async with live.stream(path, "?stdin=true") as socket:
            for _ in range(17):
                await socket.send(b"x" * 65536)
            await socket.send('{"type":"stdin_eof"}')
            texts, channels = await frames_of(socket)
        assert channels[1].split() == [b"1048576"]
        (problem,) = [text["problem"] for text in texts if text["type"] == "problem"]
        assert "stdin" in problem["detail"] and problem["status"] == 413
        async with live.stream(path) as socket:  # what was refused was not fed
            assert (await frames_of(socket))[0][0]["stdin_bytes"] == 1048576


async def test_answers_that_are_lost_leave_no_record_of_an_execution() -> None:
    async with service() as (r, live):
        sandbox = await create(live.client, **BODY)
        r.double.faults.on(Route.EXEC, Drop(done=True), times=1)
        answer = await live.client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["sleep", "1000"]})
        assert answer.status_code == 504
        assert (await live.client.get(f"/sandboxes/{sandbox}/executions")).json()["items"] == []
        await until(lambda: not r.marked())


async def test_an_error_of_an_execute_carries_the_upstreams_code() -> None:
    async with service() as (r, live):
        sandbox = await create(live.client, **BODY)
        r.double.faults.on(Route.EXEC, Answer.failure("invalid_argument", "no"), times=1)
        answer = await live.client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["x"]})
        problem = answer.json()
        assert answer.status_code == 502
        assert (problem["upstream_status"], problem["upstream_code"]) == (400, "invalid_argument")
