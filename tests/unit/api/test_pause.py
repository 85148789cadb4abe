"""`POST /sandboxes/{id}/pause` and `/resume`."""

from __future__ import annotations

import pytest

from app.core.capabilities import Capability
from app.core.errors import BackendTimeout
from tests.null_backend import CAPABILITIES, NullBackend
from tests.unit.api.service import Service, create


async def test_both_answer_with_the_sandbox_and_can_be_repeated() -> None:
    async with Service().client() as client:
        sandbox = await create(client, labels={"a": "1"})
        for path, state in (("pause", "paused"), ("pause", "paused"), ("resume", "running"), ("resume", "running")):
            answer = await client.post(f"/sandboxes/{sandbox}/{path}")
            assert (answer.status_code, answer.json()["state"]) == (200, state)
            assert answer.json() | {"last_active_at": ""} == (await client.get(f"/sandboxes/{sandbox}")).json() | {
                "last_active_at": ""
            }


async def test_paused_ones_are_listed_by_their_state_and_counted() -> None:
    async with Service().client() as client:
        sandbox, _ = await create(client), await create(client)
        await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["sleep"]})
        await client.post(f"/sandboxes/{sandbox}/pause")
        found = (await client.get("/sandboxes?state=paused")).json()["items"]
        assert [item["id"] for item in found] == [sandbox]
        assert found[0]["executions"] == {"running": 1, "total": 1}
        metrics = (await client.get("/metrics")).text
        assert 'bulkhead_sandboxes{runtime="process",state="paused"} 1.0' in metrics
        assert 'bulkhead_executions_running{runtime="process"} 1.0' in metrics


async def test_execute_on_a_paused_sandbox_names_the_state() -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        await client.post(f"/sandboxes/{sandbox}/pause")
        answer = await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["echo"]})
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/wrong_state")
        assert answer.json()["state"] == "paused"


@pytest.mark.parametrize("path", ["pause", "resume"])
async def test_what_cannot_be_done_is_a_problem(path: str) -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        await client.delete(f"/sandboxes/{sandbox}")
        ended = await client.post(f"/sandboxes/{sandbox}/{path}")
        assert (ended.status_code, ended.json()["state"]) == (409, "destroyed")
        unknown = await client.post(f"/sandboxes/sbx_none/{path}")
        assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/not_found")
    lesser = NullBackend(capabilities=CAPABILITIES - {Capability.PAUSE})
    async with Service([lesser]).client() as client:
        answer = await client.post(f"/sandboxes/{await create(client)}/{path}")
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/unsupported_by_runtime")
        assert "pause" in answer.json()["detail"]


async def test_a_pause_that_takes_too_long_is_504_and_the_sandbox_runs() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        service.backends[0].pause_error = BackendTimeout("process", "its processes did not all stop")
        answer = await client.post(f"/sandboxes/{sandbox}/pause")
        assert (answer.status_code, answer.json()["runtime"]) == (504, "process")
        assert (await client.get(f"/sandboxes/{sandbox}")).json()["state"] == "running"
