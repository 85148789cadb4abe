"""`GET …/usage` and `idle_counts` through the whole service, for every runtime."""

from __future__ import annotations

import asyncio
from typing import Any

from app.api.schemas.answers import ResourceUsage
from app.core.capabilities import Capability
from tests.contract.files_service import FileRoom, file_room, slug
from tests.contract.kinds import Kind


async def usage(room: FileRoom, path: str) -> dict[str, Any]:
    answer = await room.client.get(f"{path}/usage")
    assert answer.status_code == 200, answer.text
    ResourceUsage.model_validate_json(answer.content)
    found: dict[str, Any] = answer.json()
    return found


def promised(room: FileRoom) -> bool:
    return Capability.USAGE in room.backend.info.capabilities


async def test_usage_is_told_or_null_while_it_runs_and_after_its_end(kind: Kind) -> None:
    async with file_room(kind) as room:
        sandbox = f"/sandboxes/{room.id}"
        command = {"command": list(kind.programs.sleep())}
        execution = (await room.client.post(f"{sandbox}/executions", json=command)).headers["location"]
        for path in (sandbox, execution):
            found = await usage(room, path)
            assert set(found) == set(ResourceUsage.model_fields)
            assert found["processes"] == (1 if promised(room) else None)
        assert (await usage(room, execution))["disk_bytes"] is None
        await room.client.delete(execution)
        exit_ = (await room.client.get(execution)).json()["exit"]
        final = await usage(room, execution)
        assert final["processes"] == (0 if promised(room) else None)
        await room.client.delete(sandbox)
        assert await usage(room, execution) == final
        if promised(room):
            assert (final["cpu_seconds"], final["memory_peak_bytes"]) == (
                exit_["cpu_seconds"],
                exit_["max_memory_bytes"],
            )
        gone = await room.client.get(f"{sandbox}/usage")
        assert (gone.status_code, slug(gone), gone.json()["state"]) == (409, "wrong_state", "destroyed")
        assert (await room.client.get("/sandboxes/none/usage")).status_code == 404


async def test_processes_keep_a_sandbox_where_they_are_to_count(kind: Kind) -> None:
    async with file_room(kind) as room:
        body = {"idle_seconds": 60, "idle_counts": "processes"}
        created = await room.client.post("/sandboxes", json=body)
        if not promised(room):
            assert (created.status_code, slug(created)) == (422, "capability_missing")
            patched = await room.client.patch(f"/sandboxes/{room.id}", json={"idle_counts": "processes"})
            assert patched.json()["missing"] == ["usage"]
            return
        busy, other = (created.json(), (await room.client.post("/sandboxes", json={"idle_seconds": 60})).json())
        assert (busy["idle_counts"], other["idle_counts"]) == ("processes", "executions")
        for sandbox in (busy, other):
            daemon = await room.client.post(
                f"/sandboxes/{sandbox['id']}/run", json={"command": list(kind.programs.daemon(0))}
            )
            assert daemon.json()["exit"]["code"] == 0
            await room.client.patch(f"/sandboxes/{sandbox['id']}", json={"idle_seconds": 0.3})
        path = f"/sandboxes/{busy['id']}"
        assert await state(room, other["id"], "destroyed") == "destroyed"
        assert await state(room, busy["id"], "running") == "running"
        executions = (await room.client.get(f"{path}/executions")).json()["items"]
        await room.client.delete(f"{path}/executions/{executions[0]['id']}")
        assert await state(room, busy["id"], "destroyed") == "destroyed"


async def state(room: FileRoom, sandbox: str, wanted: str) -> str:
    """From the list, which is no request to it; waits until it is `wanted`."""
    async with asyncio.timeout(60):
        while True:
            items = (await room.client.get("/sandboxes")).json()["items"]
            found = next(item for item in items if item["id"] == sandbox)
            if found["state"] == wanted:
                return wanted
            await asyncio.sleep(0.02)


async def test_idle_counts_can_be_changed(kind: Kind) -> None:
    async with file_room(kind) as room:

        async def changed(**body: Any) -> Any:
            return (await room.client.patch(f"/sandboxes/{room.id}", json=body)).json()

        if promised(room):
            assert (await changed(idle_counts="processes"))["idle_counts"] == "processes"
            assert (await changed(idle_seconds=60))["idle_counts"] == "processes"
        assert (await changed(idle_counts="executions"))["idle_counts"] == "executions"
        assert (await changed(idle_counts="threads"))["errors"][0]["pointer"] == "/idle_counts"
